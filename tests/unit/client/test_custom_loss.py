"""`forward_backward_custom` against a fake trainer: what is sent, in which order, and what a failure leaves behind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import farstep
from farstep import Datum, ModelInput
from farstep_proto.paths import Verb
from farstep_proto.tensors import tensor_from_proto
from tests.unit.client.fake_trainer import Trainer
from tests.unit.client.test_training import datum


def doubled(data: list[Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """The fake's log-probabilities are all −1."""
    return sum((2 * p.sum() for p in logprobs), torch.zeros(())), {"count": len(data)}


def executed(trainer: Trainer) -> list[tuple[int, str]]:
    return [(seq, verb) for _, seq, verb, _ in trainer.executed]


def test_two_passes_in_a_row(client: farstep.TrainingClient, trainer: Trainer) -> None:
    targets = [2, -100, 3, 4]
    data = [datum(4, advantages=[1, 2, 3, 4], weights=[9, 9, 9, 9], target_tokens=targets), datum(2)]
    output = client.forward_backward_custom(iter(data), doubled).result()
    assert output.loss == -12
    assert output.metrics == {"count": 2, "surrogate_loss:sum": 6}  # the fake's loss is its number of tokens
    assert [fields["logprobs"].tolist() for fields in output.loss_fn_outputs] == [[-1.0] * 4, [-1.0] * 2]
    assert executed(trainer) == [(1, Verb.FORWARD), (2, Verb.FORWARD_BACKWARD)]
    first, second = (trainer.executed[index][3][0] for index in (0, 1))
    assert all(message.loss_fn == "cross_entropy" for message in (first, second))
    assert [set(d.loss_fn_inputs) for d in first.data] == [{"target_tokens"}] * 2
    sent = tensor_from_proto(second.data[0].loss_fn_inputs["weights"], field="weights")
    assert sent.tolist() == [-2, 0, -2, -2]  # −dC/dp, and nothing where the target is ignored


def raising(data: Any, logprobs: Any) -> Any:
    raise KeyError("mine")


def not_finite(data: Any, logprobs: list[torch.Tensor]) -> Any:
    return (logprobs[1] + 1).sqrt().sum(), {}  # of 0: the value is fine, its slope is not


@pytest.mark.parametrize(
    ("loss_fn", "kind", "says"),
    [
        (raising, KeyError, "mine"),
        (not_finite, farstep.InvalidInputError, r"data\[1\] is not finite at position 0"),
        (lambda data, p: (p[0].sum() / 0, {}), farstep.InvalidInputError, "the loss is -inf"),
        (lambda data, p: (torch.tensor(1.0), {}), farstep.InvalidInputError, "depends on no log-probability"),
        (lambda data, p: p[0].sum(), TypeError, "must return"),
        (lambda data, p: (p[0], {}), TypeError, "one number"),
        (lambda data, p: (p[0].sum(), None), TypeError, "metrics"),
        (lambda data, p: (p[0].sum(), {"name": "text"}), ValueError, "text"),
    ],
)
def test_a_failure_gives_its_second_place_up(
    client: farstep.TrainingClient,
    trainer: Trainer,
    loss_fn: Callable[[Any, Any], Any],
    kind: type[Exception],
    says: str,
) -> None:
    with pytest.raises(kind, match=says):
        client.forward_backward_custom([datum(4), datum(2)], loss_fn)
    client.forward_backward([datum(2)]).result(timeout=10)
    assert executed(trainer) == [(1, Verb.FORWARD), (2, Verb.SKIP), (3, Verb.FORWARD_BACKWARD)]


def test_a_failed_first_pass_is_raised_and_gives_its_second_place_up(
    client: farstep.TrainingClient, trainer: Trainer
) -> None:
    trainer.fail_next = ValueError("no such luck")
    with pytest.raises(farstep.RemoteOpError, match="no such luck"):
        client.forward_backward_custom([datum(4)], doubled)
    assert client.forward_backward_custom([datum(4)], doubled).result(timeout=10).loss == -8


async def test_a_cancelled_call_leaves_no_gap(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    task = asyncio.create_task(client.forward_backward_custom_async([datum(4)], doubled))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    trainer.release()
    output = await (await client.forward_backward_custom_async([datum(4)], doubled))
    assert output.loss == -8


def test_bad_data_are_refused_before_anything_is_sent(client: farstep.TrainingClient, trainer: Trainer) -> None:
    no_targets = Datum(ModelInput.from_ints([1, 2]), {"weights": [1.0, 1.0]})
    too_short = Datum(ModelInput.from_ints([1, 2]), {"target_tokens": np.array([1])})
    for bad, field in ((no_targets, "data[1].loss_fn_inputs"), (too_short, "data[1].loss_fn_inputs.target_tokens")):
        with pytest.raises(farstep.InvalidInputError) as caught:
            client.forward_backward_custom([datum(), bad], doubled)
        assert caught.value.field == field
    with pytest.raises(TypeError, match=r"data\[0\]"):
        client.forward_backward_custom([{"no": "datum"}], doubled)  # type: ignore[list-item]
    assert executed(trainer) == []


def test_without_torch(client: farstep.TrainingClient, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(farstep.MissingExtraError, match="pip install torch"):
        client.forward_backward_custom([datum()], doubled)
    assert executed(trainer) == []


def test_the_meter_counts_the_users_loss(client: farstep.TrainingClient) -> None:
    client.forward_backward_custom([datum(4)], doubled).result()
    since = client._meter._since
    assert (since.num_tokens, since.metrics["count"], since.weighted_loss / since.num_active) == (4, 1, -8)
