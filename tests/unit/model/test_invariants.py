"""What holds for every loss whatever its numbers are: order, masks, parts and scale, value and gradient.

fp64, so that the tolerance is of another order in sums and nothing else.
"""

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from farstep_model.losses import compute_loss
from farstep_model.sequences import Sequences
from farstep_proto.loss_table import IGNORE_INDEX, LOSS_TABLE

Case = tuple[list[int], dict[str, Tensor]]
Found = tuple[Tensor, Tensor]

RTOL = 1e-10
NAMES = sorted(LOSS_TABLE)
PAIRS = [name for name in NAMES if LOSS_TABLE[name].grouping == "pair"]
# of these only the ratio of two probabilities counts
OF_RATIOS = ["dpo", "gspo", "importance_sampling", "ipo", "ppo"]

cases = settings(max_examples=8, deadline=None, derandomize=True)


@st.composite
def batches(draw: st.DrawFn) -> Case:
    """An even number of sequences by their lengths, and [N] of all that any loss takes."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).flatmap(
        lambda some: st.just([*some, *reversed(some)])
    ))  # fmt: skip
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = sum(lengths)

    def normal(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(size, generator=generator, dtype=torch.float64)

    present = -normal().abs() - 0.1
    return lengths, {
        "p": present,
        "target_tokens": torch.randint(0, 9, (size,), generator=generator),
        "weights": torch.rand(size, generator=generator, dtype=torch.float64) + 0.1,
        "logprobs": present + normal(0.4),
        "ref_logprobs": present + normal(0.4),
        "advantages": normal(),
        "returns": normal(),
        "values": normal(),
    }


def computed(name: str, lengths: list[int], given: Mapping[str, Tensor], **config: float) -> Found:
    """The loss, and its gradient by the log-probabilities or values."""
    spec = LOSS_TABLE[name]
    p = given["p"].clone().requires_grad_()
    inputs = {key: given[key] for key in ("target_tokens", "weights", *spec.required)}
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    loss = compute_loss(name, config, logprobs=p, inputs=inputs, sequences=Sequences(ids, len(lengths))).loss_sum
    return loss.detach(), torch.autograd.grad(loss, p)[0]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=RTOL, atol=RTOL)


def chosen(given: Mapping[str, Tensor], places: Tensor) -> dict[str, Tensor]:
    return {key: values[places] for key, values in given.items()}


@pytest.mark.parametrize("name", NAMES)
@cases
@given(batch=batches(), data=st.data())
def test_the_order_of_rows_is_without_effect(name: str, batch: Case, data: st.DataObject) -> None:
    """Pairs move as one; the tokens of a row may change places as well."""
    lengths, values = batch
    rows = list(torch.arange(sum(lengths)).split(lengths))
    step = 2 if name in PAIRS else 1
    order = data.draw(st.permutations(range(0, len(rows), step)))
    moved = [rows[first + place] for first in order for place in range(step)]
    places = torch.cat([row.flip(0) for row in moved])
    loss, gradient = computed(name, lengths, values)
    other_loss, other_gradient = computed(name, [len(row) for row in moved], chosen(values, places))
    close(other_loss, loss)
    close(other_gradient, gradient[places])


@pytest.mark.parametrize("name", NAMES)
@cases
@given(batch=batches(), data=st.data())
def test_what_is_masked_might_as_well_not_be_there(name: str, batch: Case, data: st.DataObject) -> None:
    """By its weight or by its target; whatever numbers stand there, it has no gradient."""
    lengths, values = batch
    size = sum(lengths)
    kinds = torch.tensor(data.draw(st.lists(st.sampled_from([0, 0, 1, 2]), min_size=size, max_size=size)))
    kept = kinds == 0
    masked = {key: tensor.clone() for key, tensor in values.items()}
    for key in ("p", "logprobs", "ref_logprobs", "advantages", "returns", "values"):
        masked[key][~kept] = float("nan")
    masked["weights"][kinds == 1] = 0.0
    masked["target_tokens"][kinds == 2] = IGNORE_INDEX
    loss, gradient = computed(name, lengths, masked)
    left = [int(row.sum()) for row in kept.split(lengths)]
    other_loss, other_gradient = computed(name, left, chosen(values, kept))
    close(loss, other_loss)
    assert (gradient[~kept] == 0).all()
    close(gradient[kept], other_gradient)


@pytest.mark.parametrize("name", NAMES)
@cases
@given(batch=batches(), data=st.data())
def test_a_batch_is_the_sum_of_its_parts(name: str, batch: Case, data: st.DataObject) -> None:
    lengths, values = batch
    at = 2 * data.draw(st.integers(0, len(lengths) // 2))
    cut = sum(lengths[:at])
    loss, gradient = computed(name, lengths, values)
    sides = [
        computed(name, part, chosen(values, places))
        for part, places in ((lengths[:at], torch.arange(cut)), (lengths[at:], torch.arange(cut, sum(lengths))))
        if part
    ]
    close(torch.stack([each for each, _ in sides]).sum(), loss)
    close(torch.cat([each for _, each in sides]), gradient)


@pytest.mark.parametrize("name", NAMES)
@cases
@given(batch=batches(), factor=st.floats(0.01, 100))
def test_scale(name: str, batch: Case, factor: float) -> None:
    """The normalizer divides value and gradient; a loss by the token is proportional to its weights."""
    lengths, values = batch
    loss, gradient = computed(name, lengths, values)
    changes: list[Callable[[], Found]] = [lambda: computed(name, lengths, values, normalizer=1 / factor)]
    if name not in PAIRS:
        heavier = values | {"weights": factor * values["weights"]}
        changes.append(lambda: computed(name, lengths, heavier))
    for change in changes:
        other_loss, other_gradient = change()
        close(other_loss, factor * loss)
        close(other_gradient, factor * gradient)


@pytest.mark.parametrize("name", OF_RATIOS)
@cases
@given(batch=batches(), shift=st.floats(-3, 3))
def test_of_ratios_only_the_ratio_counts(name: str, batch: Case, shift: float) -> None:
    lengths, values = batch
    moved = {key: values[key] + shift for key in ("p", "logprobs", "ref_logprobs")}
    loss, gradient = computed(name, lengths, values)
    other_loss, other_gradient = computed(name, lengths, values | moved)
    close(other_loss, loss)
    close(other_gradient, gradient)


@pytest.mark.parametrize("name", PAIRS)
@cases
@given(batch=batches(), smoothing=st.floats(0, 0.49))
def test_who_is_chosen_and_who_rejected(name: str, batch: Case, smoothing: float) -> None:
    """Changed places are labels that are wrong: the loss of all labels wrong with probability s is a mixture."""
    lengths, values = batch
    rows = list(torch.arange(sum(lengths)).split(lengths))
    swapped = [row for first in range(0, len(rows), 2) for row in (rows[first + 1], rows[first])]
    loss, gradient = computed(name, lengths, values)
    places = torch.cat(swapped)
    wrong, backwards = computed(name, [len(row) for row in swapped], chosen(values, places))
    mixed, slope = computed(name, lengths, values, label_smoothing=smoothing)
    close(mixed, (1 - smoothing) * loss + smoothing * wrong)
    close(slope, (1 - smoothing) * gradient + smoothing * torch.empty_like(backwards).index_copy(0, places, backwards))
