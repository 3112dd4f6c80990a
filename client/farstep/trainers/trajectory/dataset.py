"""`TrajectoryDataset`: items in the order in which they came, found by task, as JSON or CSV.

Invariant: no two items have one id; the steps of an agent on a task ascend from 0.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from farstep.trainers.errors import DataError
from farstep.trainers.files import write_whole
from farstep.trainers.trajectory.item import TrajectoryItem
from farstep.trainers.trajectory.strategy import DefaultStrategy, TrajectoryStrategy


@dataclass(frozen=True, slots=True)
class Invalid:
    """Item number `index`, and what is wrong with it."""

    index: int
    id: str
    problems: tuple[str, ...]


class TrajectoryDataset:
    """
    Args:
        clock: gives the time of an item that is made here, in seconds since 1970.
    """

    def __init__(
        self,
        items: Iterable[TrajectoryItem] = (),
        *,
        strategy: TrajectoryStrategy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._strategy = strategy or DefaultStrategy()
        self._clock = clock
        self._items: list[TrajectoryItem] = []
        self._ids: set[str] = set()
        self._next_steps: dict[tuple[str, str], int] = {}
        self.extend(items)

    def append(self, item: TrajectoryItem) -> None:
        """Raises DataError where there is one of that id."""
        if not isinstance(item, TrajectoryItem):
            raise DataError(f"a {type(item).__name__} is no TrajectoryItem", field="item")
        if item.id in self._ids:
            raise DataError(f"{item.id!r} is there already", field="id")
        self._items.append(item)
        self._ids.add(item.id)
        place = item.task_id, item.agent_id
        self._next_steps[place] = max(self.next_step(*place), item.step + 1)

    def extend(self, items: Iterable[TrajectoryItem]) -> None:
        for item in items:
            self.append(item)

    def next_step(self, task_id: str, agent_id: str = "") -> int:
        return self._next_steps.get((task_id, agent_id), 0)

    def from_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        task_id: str,
        agent_id: str = "",
        context: Sequence[Mapping[str, Any]] = (),
        score: float | None = None,
        status: Any = "completed",
        metadata: Mapping[str, Any] | None = None,
    ) -> TrajectoryItem:
        """Appends what the strategy makes of a conversation: the next step of this agent on this task."""
        step = self.next_step(task_id, agent_id)
        about = TrajectoryItem.from_dict(
            {
                "id": f"{task_id}/{agent_id}/{step}" if agent_id else f"{task_id}/{step}",
                "task_id": task_id,
                "agent_id": agent_id,
                "step": step,
                "timestamp": self._clock(),
                "context": [dict(each) for each in context],
                "score": score,
                "status": status,
                "metadata": dict(metadata or {}),
            }
        )
        item = self._strategy.build_item(messages, about)
        self.append(item)
        return item

    def of_task(self, task_id: str, agent_id: str | None = None) -> list[TrajectoryItem]:
        """In their order; empty where there are none."""
        return [each for each in self._items if each.task_id == task_id and agent_id in (None, each.agent_id)]

    def put_task(self, task_id: str, items: Iterable[TrajectoryItem]) -> None:
        """Has these instead of what was there of a task; all of them, or, where one is of another task, none."""
        new = list(items)
        if others := [each.id for each in new if each.task_id != task_id]:
            raise DataError(f"{others[0]!r} is of another task than {task_id!r}", field="items")
        rest = [each for each in self._items if each.task_id != task_id]
        replaced = TrajectoryDataset([*rest, *new], strategy=self._strategy, clock=self._clock)
        self._items, self._ids, self._next_steps = replaced._items, replaced._ids, replaced._next_steps

    @property
    def task_ids(self) -> list[str]:
        """In the order in which they came."""
        return list(dict.fromkeys(each.task_id for each in self._items))

    def validate(self) -> list[Invalid]:
        """Every item that is not whole, and why."""
        found = []
        for index, item in enumerate(self._items):
            if problems := self._strategy.validate(item):
                found.append(Invalid(index, item.id, tuple(problems)))
        return found

    def to_json(self, path: str | Path | None = None) -> str:
        """One object an item, in an array; also written to a file, whole or not at all."""
        try:
            text = json.dumps([each.to_dict() for each in self._items], ensure_ascii=False, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"an item is not what JSON can hold: {error}", field="items") from error
        if path is not None:
            write_whole(path, text)
        return text

    @classmethod
    def from_json(cls, source: str | Path, **options: Any) -> TrajectoryDataset:
        """From a file (a `Path`; `.jsonl`: an item a line, as `rl.keep_rollouts` writes them) or from text.

        Raises:
            DataError: naming the item that is wrong.
        """
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        if isinstance(source, Path) and source.suffix == ".jsonl":
            text = f"[{','.join(line for line in text.splitlines() if line.strip())}]"
        try:
            values = json.loads(text)
        except ValueError as error:
            raise DataError(f"no JSON: {error}", field="source") from error
        if not isinstance(values, list):
            raise DataError(f"a {type(values).__name__}, not an array of items", field="source")
        made = cls(**options)
        for index, value in enumerate(values):
            try:
                made.append(TrajectoryItem.from_dict(value))
            except DataError as error:
                raise DataError(error.message, field=f"items[{index}].{error.field}", hint=error.hint) from error
        return made

    def to_csv(self, path: str | Path) -> Path:
        """A line an item under a line of names, as spreadsheets read them; lists and mappings as JSON.

        Text that a spreadsheet would take for a formula begins with an apostrophe.
        """
        names = [each.name for each in fields(TrajectoryItem)]
        lines: list[list[Any]] = [names, *([_cell(getattr(item, name)) for name in names] for item in self._items)]
        return write_whole(path, lambda out: csv.writer(out).writerows(lines))

    def clear(self) -> None:
        """Forgets everything, the step counters too."""
        self._items.clear()
        self._ids.clear()
        self._next_steps.clear()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[TrajectoryItem]:
        return iter(self._items)

    def __getitem__(self, index: int) -> TrajectoryItem:
        return self._items[index]


def _cell(value: object) -> str | int | float:
    match value:
        case None:
            return ""
        case int() | float():
            return value
        case str():
            return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
        case _:
            return json.dumps(value, ensure_ascii=False)
