"""`TrajectoryStrategy`: what of a conversation becomes an item's input and output, and when an item is whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from farstep.rollout.turns import calls_of, text_of
from farstep.trainers.trajectory.item import TrajectoryItem


class TrajectoryStrategy(Protocol):
    def build_item(self, messages: Sequence[Mapping[str, Any]], about: TrajectoryItem) -> TrajectoryItem:
        """`about` has everything that is not in the messages."""
        ...

    def validate(self, item: TrajectoryItem) -> list[str]:
        """What is wrong with it, in words; nothing where it is whole."""
        ...


class DefaultStrategy:
    """The first user message is the input, the last assistant message the output; all tool calls are kept."""

    def build_item(self, messages: Sequence[Mapping[str, Any]], about: TrajectoryItem) -> TrajectoryItem:
        users = [text_of(each) for each in messages if each.get("role") == "user"]
        answers = [text_of(each) for each in messages if each.get("role") == "assistant"]
        values = about.to_dict() | {
            "input": users[0] if users else "",
            "output": answers[-1] if answers else "",
            "messages": [dict(each) for each in messages],
            "tool_calls": [call for each in messages for call in calls_of(each)],
        }
        return TrajectoryItem(**values)

    def validate(self, item: TrajectoryItem) -> list[str]:
        problems = [f"{name} is empty" for name in ("id", "task_id", "input") if not getattr(item, name)]
        if item.status == "completed" and not item.output and not item.tool_calls:
            problems.append("output is empty, and no tool was called")
        if item.step < 0:
            problems.append(f"step is {item.step}")
        if item.score is not None and not math.isfinite(item.score):
            problems.append(f"score is {item.score}")
        problems += [f"messages[{index}] has no role" for index, each in enumerate(item.messages) if not _role(each)]
        return problems


def _role(message: object) -> bool:
    return isinstance(message, Mapping) and bool(message.get("role"))
