"""Rows of tokens: aligned here, shifted once on the way out."""

import numpy as np
import pytest

from farstep.trainers import DataError, TrainSequence
from farstep.trainers.sequence import aligned

ROW = TrainSequence([5, 6, 7, 8], [1.0, 0.0, 1.0, 1.0], logprobs=[0.0, -0.1, -0.2, -0.3])


def inputs(datum):
    return {name: value.tolist() for name, value in datum.loss_fn_inputs.items()}


def test_a_label_is_the_next_token_where_it_is_trained():
    datum = ROW.to_datum("logprobs")
    assert datum.model_input.to_ints() == [5, 6, 7]
    found = inputs(datum)
    assert found["target_tokens"] == [-100, 7, 8]
    assert found["logprobs"] == pytest.approx([-0.1, -0.2, -0.3])
    assert "weights" not in found


def test_weights_travel_where_they_say_something():
    row = ROW.replace(loss_mask=[9.0, 0.5, 0.0, -2.0])
    assert inputs(row.to_datum()) == {"target_tokens": [6, -100, 8], "weights": [0.5, 0.0, -2.0]}
    assert inputs(row.to_datum(weights=False)) == {"target_tokens": [6, -100, 8]}
    assert inputs(row.to_datum(targets="all", weights=False)) == {"target_tokens": [6, 7, 8]}
    assert (row.weight, row.num_targets) == (2.5, 2)


def test_the_first_token_is_never_a_target():
    assert TrainSequence([1, 2], [1.0, 1.0]).num_targets == 1


def test_what_comes_back_is_put_beside_its_token():
    assert aligned(np.array([1.0, 2.0])).tolist() == [0.0, 1.0, 2.0]


def test_a_completion_alone_is_trained():
    row = TrainSequence.from_prompt_completion([1, 2], [3], reward=2.0)
    assert (row.tokens, row.loss_mask, row.prompt_mask, row.reward) == ([1, 2, 3], [0.0, 0.0, 1.0], [1, 1, 0], 2.0)
    assert TrainSequence([1, 2, 3], [0, 0, 1]).prompt_mask == [1, 1, 0]
    assert len(row) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": [1], "loss_mask": [1.0]}, "tokens: 1 tokens, and the first is never a target"),
        ({"tokens": [1, 2], "loss_mask": [1.0]}, "loss_mask: 1 entries for 2 tokens"),
        ({"tokens": [1, 2], "loss_mask": [0, 1], "values": [0.0]}, "values: 1 entries for 2 tokens"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields, message):
    with pytest.raises(DataError, match=message):
        TrainSequence(**fields)


def test_a_field_that_is_not_there_is_refused_by_name():
    with pytest.raises(DataError, match="advantages: this row has none"):
        ROW.to_datum("advantages")
    with pytest.raises(DataError, match="no field 'reward'"):
        ROW.to_datum("reward")
