"""`TrajectoryExtractor`: one long conversation, cut where the user speaks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from farstep.trainers.errors import DataError
from farstep.trainers.trajectory.dataset import TrajectoryDataset
from farstep.trainers.trajectory.item import TrajectoryItem
from farstep.trainers.trajectory.strategy import TrajectoryStrategy

Messages = Sequence[Mapping[str, Any]]


class TrajectoryExtractor:
    def __init__(self, strategy: TrajectoryStrategy | None = None) -> None:
        self._strategy = strategy

    def extract(
        self, messages: Messages, *, task_id: str, agent_id: str = "", dataset: TrajectoryDataset | None = None
    ) -> list[TrajectoryItem]:
        """An item for each turn of the user; what was said before it is its context.

        Args:
            dataset: the items are appended to it, and their steps go on from its.

        Raises:
            DataError: a message has no role.
        """
        into = dataset if dataset is not None else TrajectoryDataset(strategy=self._strategy)
        return [
            into.from_messages(turn, task_id=task_id, agent_id=agent_id, context=messages[:start])
            for start, turn in user_turns(messages)
        ]


def user_turns(messages: Messages) -> list[tuple[int, Messages]]:
    """Where each turn begins, and its messages. Messages of the user that follow each other begin one turn."""
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError("has no role", field=f"messages[{index}]")
    is_user = [message["role"] == "user" for message in messages]
    starts = [index for index, this in enumerate(is_user) if this and not (index and is_user[index - 1])]
    return [(start, messages[start:end]) for start, end in itertools.pairwise([*starts, len(messages)])]
