"""One copy of the embedded model for all tests of the trainer, and data for it."""

import numpy as np
import pytest
import torch

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.load import load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_proto.loss_table import LOSS_TABLE
from farstep_worker.executor import Executor
from farstep_worker.runs import RunConfig
from farstep_worker.submission import Example, Pass
from tests.unit.worker.wire import GatedExecutor, serving, to_request


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)  # small tensors, on machines that do other things too


@pytest.fixture(scope="session")
def layers():
    return LoraLayers.install(load_base_model(device="cpu"))


@pytest.fixture
def executor(layers, tmp_path):
    return Executor(layers, CheckpointStore(tmp_path / "store"), token_budget=128)


@pytest.fixture
def make_run(executor):
    """Creates a run; `warm` puts noise into its adapter, so that every gradient is there."""

    def make(run_id="run", *, rank=4, dropout=0.0, seed=1, warm=False, **spec):
        config = RunConfig(run_id, LoraSpec(rank, dropout=dropout, **spec), seed, executor.base.max_seq_len)
        run = executor.create_run(config)
        if warm:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in run.adapter.parameters():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return run

    return make


@pytest.fixture
def make_pass(layers):
    """A pass over data of the given lengths with all that its loss needs, the same for the same seed."""

    def make(loss_fn="cross_entropy", *, lengths=(5, 12, 3, 9), seed=0, backward=True, config=None):
        rng = np.random.default_rng(seed)
        examples = []
        for length in lengths:
            tokens = rng.integers(3, layers.base.vocab_size, length).astype(np.int32)
            inputs = {
                "target_tokens": np.roll(tokens, -1).astype(np.int64),
                "weights": rng.choice([0.0, 0.5, 1.0], length).astype(np.float32),
                "logprobs": -rng.uniform(2, 8, length).astype(np.float32),
                "advantages": rng.normal(size=length).astype(np.float32),
                "ref_logprobs": (-4 - 4 * (np.arange(length) % 5) / 5).astype(np.float32),
                "sequence_ratio_mask": (np.arange(length) % 3 != 1).astype(np.float32),
                "returns": np.cos(np.arange(length) * (1.0 + seed)).astype(np.float32),
                "values": (0.4 * np.sin(np.arange(length))).astype(np.float32),
            }
            inputs["target_tokens"][-1] = -100
            spec = LOSS_TABLE[loss_fn]
            keep = (*spec.required, *spec.optional)
            examples.append(Example(tokens, {key: inputs[key] for key in inputs if key in keep}))
        return Pass(loss_fn, config or {}, tuple(examples), backward)

    return make


@pytest.fixture
def gated(executor):
    gated = GatedExecutor(executor)
    yield gated
    gated.gate.set()


@pytest.fixture
async def trainer(gated):
    """A client of a trainer that has one run, "run"."""
    async with serving(gated) as trainer:
        assert (await trainer.create()).status_code == 200
        yield trainer


@pytest.fixture
def request_of(make_pass):
    """As `make_pass`, as a message."""
    return lambda **settings: to_request(make_pass(**settings))
