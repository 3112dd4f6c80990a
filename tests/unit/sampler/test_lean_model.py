"""The forward pass of its own against the same model's modules, in one decoder and the other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel, load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.prepared import prepare
from farstep_model.products import HAS_ONEDNN
from farstep_model.spec import LoraSpec
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.kv_rows import Slab
from farstep_sampler.engines.kv_shape import KVShape
from farstep_sampler.engines.model_pass import Decoder
from farstep_sampler.engines.parts import ChunkPart, RowsPart
from tests.support.tiny_models import write_model

LEAN = ["llama", "qwen2", "qwen3", "mistral", "wide_llama", "wide_mistral"]
OTHERS = ["gemma2", "cohere", "moe", "granite_multiplied", "ministral3", "dynamic_llama"]
START, NUM_STEPS = 12, 8
SLOTS = [0, 1, 2, 1]


def open_decoder(kind: str, folder: Path, *, prepared: bool = True, dtype: torch.dtype = torch.float32) -> Decoder:
    """Biases and norms are what no fresh model has: not all the same. Slots 1 and 2 have adapters, 2 with DoRA."""
    write_model(kind, folder)
    base = load_base_model(str(folder), device="cpu", dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in base.model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    layers = LoraLayers.install(base)
    if prepared:
        prepare(layers)
    table = AdapterTable(layers, num_slots=2)
    for slot in (1, 2):
        adapter = Adapter.init(layers, LoraSpec(rank=3 * slot, use_dora=slot == 2), seed=slot)
        with torch.no_grad():
            for weights in adapter.weights.values():
                weights.b.normal_(std=0.1, generator=generator)
        table.load(slot, adapter)
    return Decoder.of(base, table, KVShape.of(base))


def run(decoder: Decoder, rows: list[int]) -> tuple[list[Tensor], Slab]:
    """Hidden states of a prompt in two chunks and of some steps after it, for each of the rows, and what was kept."""
    shape = KVShape.of(decoder.base)
    slab = Slab(64, shape.zeros(len(rows), 64))
    slots, found = [SLOTS[row] for row in rows], []
    for first in (0, 8):
        num_tokens = min(8, START - first)
        parts = [ChunkPart([array[place] for array in slab.arrays], first, num_tokens) for place in range(len(rows))]
        where = torch.arange(first, first + num_tokens)
        with decoder.active(torch.tensor(slots).repeat_interleave(num_tokens)):
            tokens = torch.cat([tokens_at(row, where) for row in rows])
            hidden = decoder.hidden_states(tokens, where.repeat(len(rows)), parts)
        found.append(hidden.unflatten(0, (len(rows), -1)))
    for position in range(START, START + NUM_STEPS):
        where = torch.full((len(rows),), position)
        padding = -len(rows) % 4
        padded = torch.nn.functional.pad(where, (0, padding))
        tokens = torch.cat([tokens_at(row, where[:1]) for row in rows] + [torch.zeros(padding, dtype=torch.long)])
        with decoder.active(torch.tensor(slots + [0] * padding)):
            hidden = decoder.hidden_states(tokens, padded, [RowsPart(slab, where, position)])
        found.append(hidden[: len(rows), None])
    return found, slab


def tokens_at(row: int, positions: Tensor) -> Tensor:
    return (positions * (7 + row) + row) % 300 + 3


def plain(decoder: Decoder) -> Decoder:
    return replace(decoder, lean=None)


@pytest.mark.parametrize("kind", LEAN)
@pytest.mark.parametrize("prepared", [True, False])
def test_it_computes_what_the_modules_compute(kind: str, prepared: bool, tmp_path: Path) -> None:
    decoder = open_decoder(kind, tmp_path, prepared=prepared)
    assert decoder.lean is not None
    (found, slab), (expected, expected_slab) = run(decoder, [0, 1, 2, 3]), run(plain(decoder), [0, 1, 2, 3])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)  # fp32 sums in another order
    for mine, theirs in zip(slab.arrays, expected_slab.arrays, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_built_or_computes_otherwise_runs_through_transformers(kind: str, tmp_path: Path) -> None:
    decoder = open_decoder(kind, tmp_path)
    assert decoder.lean is None
    linears = decoder.adapters.layers.linears
    assert not HAS_ONEDNN or all(linear.prepared is not None for linear in linears)


@pytest.mark.skipif(
    not (HAS_ONEDNN and torch.backends.mkl.is_available()), reason="the bits are promised for MKL and oneDNN alone"
)
@pytest.mark.parametrize("kind", ["qwen2", "wide_llama"])
def test_company_changes_no_bit(kind: str, tmp_path: Path) -> None:
    decoder = open_decoder(kind, tmp_path)
    together, _ = run(decoder, [0, 1, 2, 3] * 5)
    for row in range(4):
        alone, _ = run(decoder, [row])
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(all_[row::4], one.expand(5, -1, -1), rtol=0, atol=0)


def test_the_weights_stay_the_models_own(tmp_path: Path) -> None:
    decoder = open_decoder("wide_llama", tmp_path, prepared=False)
    unchanged = load_base_model(str(tmp_path), device="cpu")
    base: BaseModel = decoder.base
    for (name, mine), theirs in zip(base.model.named_parameters(), unchanged.model.parameters(), strict=True):
        assert mine.dim() == 1 or torch.equal(mine, theirs), name
    ids = torch.arange(3, 20)[None]
    assert torch.isfinite(base.hidden_states(ids)).all()


def test_half_precision_is_near_the_modules(tmp_path: Path) -> None:
    decoder = open_decoder("wide_llama", tmp_path, dtype=torch.bfloat16)
    assert decoder.lean is not None
    for mine, theirs in zip(run(decoder, [0, 1, 2, 3])[0], run(plain(decoder), [0, 1, 2, 3])[0], strict=True):
        assert (mine - theirs).abs().max() <= 0.03 * theirs.abs().max()  # a few units of bf16, 2⁻⁸ each
