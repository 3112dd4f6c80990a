"""Packed rows against their sequences one by one, through a model that never heard of packing."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from farstep_model import packed
from farstep_model.lora import LoraLayers
from farstep_model.packed import ATTENTION, NotPackableError, Packing, enable_packing
from tests.support.tiny_models import VOCAB

LENGTHS = (6, 1, 11, 1, 1, 9)  # longer than the sliding windows, which are 4
PACKABLE = ["llama", "qwen3", "mistral", "gemma2_uncapped", "cohere", "granite", "moe"]


def draw(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in lengths]


def test_positions_restart_at_each_sequence():
    packing = Packing.of((3, 1, 2))
    assert packing.positions.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert packing.starts.tolist() == [0, 3, 4, 6]
    assert packing.starts.dtype == torch.int32
    assert packing.longest == 3


@pytest.mark.parametrize("kind", PACKABLE)
@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (20,), (4, 5)])
def test_a_packed_row_is_its_sequences(load, kind, lengths):
    plain, base = load(kind), load(kind)
    enable_packing(base)
    tokens = draw(lengths)
    hidden = base.hidden_states(torch.cat(tokens)[None], **Packing.of(lengths).arguments)[0]
    expected = torch.cat([plain.hidden_states(sequence[None])[0] for sequence in tokens])
    # fp32, and sums in another order; the hidden states are of size 1
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PACKABLE)
def test_rows_padded_on_the_right_are_computed_as_before(load, kind):
    plain, base = load(kind), load(kind)
    enable_packing(base)
    first, second = draw((10, 6))
    rows = torch.stack([first, torch.cat([second, torch.zeros(4, dtype=torch.long)])])
    hidden = base.hidden_states(rows)
    torch.testing.assert_close(hidden[0], plain.hidden_states(first[None])[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hidden[1, :6], plain.hidden_states(second[None])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("gemma2", "asks for softcap"),
        ("sinks", "asks for s_aux"),
        ("hybrid", "layers of linear_attention"),
        ("alibi", "not expressed without a mask"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name_and_stays_as_it_was(load, kind, why):
    base = load(kind)
    (tokens,) = draw((12,))
    before = base.hidden_states(tokens[None])
    with pytest.raises(NotPackableError, match=why):
        enable_packing(base)
    assert base.model.config._attn_implementation != ATTENTION
    assert torch.equal(base.hidden_states(tokens[None]), before)


def test_a_model_that_lets_sequences_see_each_other_is_found_out(load, monkeypatch):
    def forgetful(*args, cu_seq_lens_q=None, **kwargs):
        return packed.packed_attention(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, ATTENTION, forgetful)
    base = load("llama")
    with pytest.raises(NotPackableError, match="values of a packed row differ"):
        enable_packing(base)
    assert base.model.config._attn_implementation == "sdpa"


def test_a_device_without_the_kernel_is_found_out(load, monkeypatch):
    def missing(*args, **kwargs):
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, ATTENTION, missing)
    base = load("llama")
    with pytest.raises(NotPackableError, match=r"^no kernel image$"):
        enable_packing(base)
    assert base.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("asked", [{"softcap": 5.0}, {"dropout": 0.1}, {"is_causal": False}, {"s_aux": 1}])
def test_attention_of_another_kind_is_refused(asked):
    states = torch.zeros(1, 2, 3, 8)
    with pytest.raises(NotPackableError, match="asks for"):
        packed.packed_attention(torch.nn.Module(), states, states, states, None, **asked)
    with pytest.raises(NotPackableError, match="attention_mask"):
        packed.packed_attention(torch.nn.Module(), states, states, states, torch.ones(3, 3))


def test_tokens_of_several_adapters_share_a_packed_row(load, make_adapter):
    base = load("llama")
    enable_packing(base)
    layers = LoraLayers.install(base)
    adapters = [make_adapter(layers, seed=1), None, make_adapter(layers, seed=2, rank=2)]
    lengths, owners = (5, 2, 7, 1), [2, 0, 0, 1]
    tokens = draw(lengths)
    rows = torch.repeat_interleave(torch.tensor(owners), torch.tensor(lengths))
    with layers.active(adapters, rows):
        hidden = base.hidden_states(torch.cat(tokens)[None], **Packing.of(lengths).arguments)[0]
    expected = []
    for sequence, owner in zip(tokens, owners, strict=True):
        with layers.active([adapters[owner]]):
            expected.append(base.hidden_states(sequence[None])[0])
    torch.testing.assert_close(hidden, torch.cat(expected), rtol=1e-4, atol=1e-4)
