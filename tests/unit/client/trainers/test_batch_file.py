"""Rows that are kept of a batch, and what is sampled from a row at an evaluation."""

import json

import pytest

from farstep.trainers.batch_file import BatchFile, telling
from farstep.trainers.completions import answer_of, prompt_of
from farstep.trainers.sequence import TrainSequence


def row(advantage=None):
    given = {} if advantage is None else {"advantages": [0.0, 0.0, advantage, advantage]}
    return TrainSequence(tokens=[1, 2, 3, 4], loss_mask=[0.0, 0.0, 1.0, 1.0], **given)


@pytest.mark.parametrize(
    ("advantages", "kept"),
    [
        ([0.0, 0.0, 2.0, 1.0, -1.0, 0.5, -3.0, 1.5], [2, 4, 6, 7]),
        ([0.0] * 8, [0, 1, 2, 3]),
        ([None] * 8, [0, 1, 2, 3]),
        ([1.0, -1.0, 0.0], [0, 1, 2]),
        ([1.0], [0]),
        ([], []),
    ],
)
def test_rows_that_say_most_are_kept(advantages, kept):
    assert telling([row(each) for each in advantages]) == kept


class Update:
    passes = ()

    def __init__(self, rows):
        self.rows = rows


def test_rows_of_a_group_have_their_names_and_places(tmp_path):
    file = BatchFile(tmp_path / "b.jsonl", text_of=lambda ids: None, has_rewards=False, names=("chosen", "rejected"))
    file.saw(1, [Update([row(), row()]), Update([row(), row()])])
    rows = json.loads((tmp_path / "b.jsonl").read_text())["rows"]
    assert [(each["row"], each["name"]) for each in rows] == [
        (0, "chosen"), (1, "rejected"), (2, "chosen"), (3, "rejected"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mask", "prompt", "answer"),
    [
        ([0, 0, 1, 1, 0, 0, 1], [10, 11], [12, 13]),  # of a conversation, the turn that the model is asked for
        ([0, 0, 1, 1, 1, 1, 1], [10, 11], [12, 13, 14, 15, 16]),
        ([0, 0, 0, 0, 0, 0, 0], [10, 11, 12, 13, 14, 15, 16], []),
    ],
)
def test_the_answer_that_is_wanted_ends_where_something_is_given_again(mask, prompt, answer):
    given = TrainSequence(tokens=list(range(10, 17)), loss_mask=[float(each) for each in mask])
    assert prompt_of(given) == prompt
    assert answer_of(given) == answer
