"""A sampler's slots: many adapters in one batch, each row as in the trainer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from farstep_model.adapter import Adapter
from farstep_model.logprobs import token_logprobs, topk_logprobs
from farstep_model.lora import LoraLayers
from farstep_model.slots import AdapterSlots
from farstep_proto.errors import InvalidInput

Make = Callable[..., Adapter]

ALL = {"train_attn": True, "train_mlp": True, "train_unembed": True}


@pytest.fixture
def adapters(layers: LoraLayers, make_adapter: Make) -> list[Adapter]:
    return [
        make_adapter(layers, **ALL),
        make_adapter(layers, seed=2, rank=7, alpha=3.0, use_rslora=True, train_mlp=False),
        make_adapter(layers, seed=3, rank=1, train_attn=False),
    ]


@pytest.fixture
def with_dora(layers: LoraLayers, make_adapter: Make) -> Adapter:
    return make_adapter(layers, seed=4, rank=3, use_dora=True, **ALL)


@pytest.fixture
def slots(layers: LoraLayers, adapters: list[Adapter]) -> AdapterSlots:
    slots = AdapterSlots(layers, 5, 8)
    for slot, adapter in enumerate(adapters, start=1):
        slots.load(slot, adapter)
    return slots


def last_logits(layers: LoraLayers, ids_BT: Tensor) -> Tensor:
    """As in decoding: the output layer sees one position a row."""
    return layers.base.logits(layers.base.hidden_states(ids_BT)[:, -1])


def alone(layers: LoraLayers, adapter: Adapter | None, ids_T: Tensor) -> Tensor:
    with layers.active([adapter]):
        return last_logits(layers, ids_T[None])[0]


@pytest.mark.parametrize("rows", [[1, 1, 1, 1], [3, 3, 3, 3], [0, 0, 0, 0], [2, 0, 1, 3], [4, 1, 1, 0], [0, 4, 0, 4]])
def test_every_row_is_as_in_the_trainer(
    layers: LoraLayers, slots: AdapterSlots, adapters: list[Adapter], ids_BT: Tensor, rows: list[int]
) -> None:
    with slots.active(rows):
        logits_BV = last_logits(layers, ids_BT)
    assert not logits_BV.requires_grad
    by_slot = [None, *adapters, None]
    for row, slot in enumerate(rows):
        expected = alone(layers, by_slot[slot], ids_BT[row])
        torch.testing.assert_close(logits_BV[row], expected, rtol=0, atol=1e-5)


def test_one_slot_for_all_rows_is_the_trainer_bit_for_bit(
    layers: LoraLayers, slots: AdapterSlots, adapters: list[Adapter], ids_BT: Tensor
) -> None:
    with slots.active(torch.full((4,), 2)):
        sampled = last_logits(layers, ids_BT)
    with layers.active([adapters[1]]):
        assert torch.equal(sampled, last_logits(layers, ids_BT))


def test_the_base_rows_are_the_base_bit_for_bit(layers: LoraLayers, slots: AdapterSlots, ids_BT: Tensor) -> None:
    expected = last_logits(layers, ids_BT)
    with slots.active([0, 0, 0, 0]):
        assert torch.equal(last_logits(layers, ids_BT), expected)


def test_loading_and_freeing_touch_no_other_slot(
    layers: LoraLayers, slots: AdapterSlots, adapters: list[Adapter], ids_BT: Tensor
) -> None:
    rows = [1, 2, 3, 0]
    with slots.active(rows):
        before = last_logits(layers, ids_BT)
    slots.load(2, adapters[2])
    slots.load(4, adapters[0])
    slots.free(3)
    with slots.active(rows):
        after = last_logits(layers, ids_BT)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(after[3], before[3], rtol=0, atol=1e-5)
    torch.testing.assert_close(after[1], alone(layers, adapters[2], ids_BT[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(after[2], alone(layers, None, ids_BT[2]), rtol=0, atol=1e-5)


def test_a_slot_keeps_what_was_loaded_when_training_goes_on(
    layers: LoraLayers, slots: AdapterSlots, adapters: list[Adapter], ids_BT: Tensor
) -> None:
    with slots.active([1] * 4):
        before = last_logits(layers, ids_BT)
        with torch.no_grad():
            adapters[0].parameters()[1].add_(1)
        assert torch.equal(last_logits(layers, ids_BT), before)


def test_logprobs_of_flat_tokens_take_rows_for_tokens(
    layers: LoraLayers, slots: AdapterSlots, adapters: list[Adapter], ids_BT: Tensor
) -> None:
    rows_B = torch.tensor([1, 2, 0, 1])
    with slots.active(rows_B):
        hidden_ND = layers.base.hidden_states(ids_BT).flatten(0, 1)
        rows_N = rows_B.repeat_interleave(ids_BT.shape[1])
        got, _ = token_logprobs(layers.base, hidden_ND, ids_BT.flatten(), rows_N=rows_N, max_logits=384 * 5)
        top = topk_logprobs(layers.base, hidden_ND, 3, rows_N=rows_N, max_logits=384 * 5)
        with pytest.raises(ValueError, match="rows_N must say"):
            token_logprobs(layers.base, hidden_ND, ids_BT.flatten())
    for row, slot in enumerate(rows_B.tolist()):
        with layers.active([[None, *adapters][slot]]):
            expected = layers.base.logits(layers.base.hidden_states(ids_BT[row : row + 1]))[0].log_softmax(-1)
        place = slice(row * 9, row * 9 + 9)
        torch.testing.assert_close(got[place], expected.gather(-1, ids_BT[row][:, None])[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(top[1][place], expected.topk(3).values, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused(layers: LoraLayers, slots: AdapterSlots, make_adapter: Make) -> None:
    with pytest.raises(InvalidInput, match="9 is above this sampler's 8") as caught:
        slots.load(1, make_adapter(layers, rank=9))
    assert caught.value.field == "lora.rank"
    broken = make_adapter(layers)
    broken.state_dict()[broken.names()[1]].fill_(float("inf"))
    with pytest.raises(InvalidInput, match="not finite") as caught:
        slots.load(1, broken)
    assert caught.value.field == broken.names()[1]
    for slot in (0, 5):
        with pytest.raises(ValueError, match="is not between 1 and 4"):
            slots.load(slot, make_adapter(layers))
    with pytest.raises(ValueError, match="outside the 5 slots"), slots.active([0, 5]):
        pass


@pytest.mark.parametrize("rows", [[4, 4, 4, 4], [4, 0, 1, 4], [2, 4, 0, 1]])
def test_dora_is_as_in_the_trainer_and_leaves_other_rows_alone(
    layers: LoraLayers,
    slots: AdapterSlots,
    adapters: list[Adapter],
    with_dora: Adapter,
    ids_BT: Tensor,
    rows: list[int],
) -> None:
    generator = torch.Generator().manual_seed(5)
    for linear in layers.linears:  # which the update must not change
        linear.bias = torch.nn.Parameter(torch.randn(linear.out_features, generator=generator), requires_grad=False)
    slots.load(4, adapters[0])
    with slots.active(rows):
        plain = last_logits(layers, ids_BT)
    slots.load(4, with_dora)
    with slots.active(rows):
        found = last_logits(layers, ids_BT)
    by_slot = [None, *adapters, with_dora]
    for row, slot in enumerate(rows):
        torch.testing.assert_close(found[row], alone(layers, by_slot[slot], ids_BT[row]), rtol=0, atol=1e-5)
        if slot != 4:
            torch.testing.assert_close(found[row], plain[row], rtol=0, atol=1e-5)
    slots.free(4)
    with slots.active([4] * 4):
        freed = last_logits(layers, ids_BT)
    torch.testing.assert_close(freed, last_logits(layers, ids_BT), rtol=0, atol=1e-5)
    slots.load(4, adapters[1])  # what DoRA left in the slot is gone
    with slots.active([4, 0, 4, 0]):
        torch.testing.assert_close(
            last_logits(layers, ids_BT)[0], alone(layers, adapters[1], ids_BT[0]), rtol=0, atol=1e-5
        )
