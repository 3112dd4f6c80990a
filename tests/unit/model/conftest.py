"""Tiny random models of several architectures, saved once and loaded afresh for every test that changes them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel, load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from tests.support.tiny_models import VOCAB, write_model


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and lose much when cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny model by architecture."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str) -> Path:
        path = root / kind
        if not path.exists():
            write_model(kind, path)
        return path

    return folder


@pytest.fixture
def load(model_folder: Callable[[str], Path]) -> Callable[[str], BaseModel]:
    """Loads a fresh copy of a tiny model by architecture, on the CPU in fp32."""
    return lambda kind: load_base_model(str(model_folder(kind)), device="cpu")


@pytest.fixture
def ids_BT() -> torch.Tensor:
    return torch.randint(3, VOCAB, (4, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def layers(load: Callable[[str], BaseModel]) -> LoraLayers:
    """The layers of a fresh tiny Llama, whose output layer is its own."""
    return LoraLayers.install(load("llama"))


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    """Makes an adapter of rank 4 and alpha 6, unless told otherwise, whose B is not zero: it changes something.

    Nor are the magnitudes of DoRA those of the base.
    """

    def make(layers: LoraLayers, *, seed: int = 1, **settings: Any) -> Adapter:
        adapter = Adapter.init(layers, LoraSpec(**{"rank": 4, "alpha": 6.0, **settings}), seed=seed)
        generator = torch.Generator().manual_seed(seed + 100)
        for name, tensor in adapter.state_dict().items():
            if "lora_B" in name:
                tensor.normal_(std=0.1, generator=generator)
            if "magnitude" in name:
                tensor.mul_(torch.empty_like(tensor).uniform_(0.7, 1.5, generator=generator))
        return adapter

    return make
