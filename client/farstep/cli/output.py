"""What a command prints: tables for people, JSON for programs, and how times, sizes and numbers look.

A table fits the terminal by leaving columns out, the empty ones first; it never breaks an id while it can help it.
Where nobody looks (a pipe) every column is there at its full width, without colour. What a server sent reaches a
terminal with its control characters replaced.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from typing import Generic, Literal, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_AGES = ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h"), (90 * 86400, 86400, "d"))
_GAP = 2
_COLOURS = {
    "ready": "green",
    "running": "green",
    "open": "green",
    "active": "green",
    "provisioning": "yellow",
    "starting": "yellow",
    "inactive": "yellow",
    "failed": "red",
    "died": "red",
}


@dataclass(frozen=True)  # with slots, `Column[T](…)` cannot note its T in Python 3.11
class Column(Generic[T]):
    """One column of a table.

    Args:
        drop: a narrow terminal leaves out the column with the highest number first; 0: never.
    """

    title: str
    of: Callable[[T], str]
    drop: int = 0
    justify: Literal["left", "right"] = "left"


def print_table(rows: Sequence[T], columns: Sequence[Column[T]], *, nothing: str) -> None:
    """`nothing` is said on standard error where there is no row."""
    if not rows:
        sys.stderr.write(f"{nothing}\n")
        return
    cells = [[_clean(column.of(row)) for row in rows] for column in columns]
    widths = [max(map(cell_len, (column.title, *of))) for column, of in zip(columns, cells, strict=True)]
    if not _is_seen():
        _print_plain(columns, cells, widths)
        return
    console = _Console()
    told = [i for i, of in enumerate(cells) if any(of) or columns[i].drop == 0]
    shown = _fitting(told, [column.drop for column in columns], widths, console.width)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    for i in shown:
        table.add_column(columns[i].title, justify=columns[i].justify, overflow="fold")
    for row in zip(*(cells[i] for i in shown), strict=True):
        table.add_row(*(Text(text, style=_COLOURS.get(text, "")) for text in row))
    console.print(table)


def print_details(facts: Mapping[str, str]) -> None:
    """One thing, a fact a line."""
    width = max(map(len, facts))
    if not _is_seen():
        print_lines([f"{name:{width}}  {_clean(value)}".rstrip() for name, value in facts.items()])
        return
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        cleaned = _clean(value, first_line=False)
        table.add_row(name, Text(cleaned, style=_COLOURS.get(cleaned, "")))
    _Console().print(table)


def print_json(content: object) -> None:
    """One document; dataclasses become objects, moments ISO 8601 in UTC."""
    sys.stdout.write(json.dumps(content, indent=2, default=_plain) + "\n")


def print_json_line(content: object) -> None:
    """One of many documents, said at once."""
    sys.stdout.write(json.dumps(content, default=_plain) + "\n")
    sys.stdout.flush()


def print_lines(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def print_error(message: str) -> None:
    """One line on standard error, whatever the message holds."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    sys.stderr.write(visible("; ".join(lines)) + "\n")


def _is_seen() -> bool:
    """Whether somebody looks at it, or has said how wide it is to be."""
    return sys.stdout.isatty() or bool(os.environ.get("COLUMNS"))


def _print_plain(columns: Sequence[Column[T]], cells: Sequence[Sequence[str]], widths: Sequence[int]) -> None:
    gap = " " * _GAP
    for row in ([column.title for column in columns], *zip(*cells, strict=True)):
        padded = [text + " " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)]
        sys.stdout.write(gap.join(padded).rstrip() + "\n")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for `main`, which ends every command alike


def visible(text: str) -> str:
    """The text with control characters, which would move a terminal's cursor or worse, replaced."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else "�" for sign in text)


def ago(moment: datetime | None, *, now: datetime | None = None) -> str:
    """How long ago, or in how long; a date where that is more than 90 days. Empty where there is no moment."""
    if moment is None:
        return ""
    seconds = int(((now or datetime.now(UTC)) - moment).total_seconds())
    for below, unit, name in _AGES:
        if abs(seconds) < below:
            return f"{seconds // unit} {name} ago" if seconds >= 0 else f"in {-seconds // unit} {name}"
    return f"{moment.astimezone():%Y-%m-%d}"


def moment(at: datetime | None) -> str:
    """In the zone of this machine, and how long ago."""
    return "" if at is None else f"{at.astimezone():%Y-%m-%d %H:%M:%S} ({ago(at)})"


def size(num_bytes: float) -> str:
    unit = 0
    while num_bytes >= 1024 and unit < len(_UNITS) - 1:
        num_bytes, unit = num_bytes / 1024, unit + 1
    return f"{num_bytes:.0f} {_UNITS[unit]}" if unit == 0 else f"{num_bytes:.1f} {_UNITS[unit]}"


def number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def duration(seconds: float) -> str:
    """`1 h 02 min`, `3 min 05 s`, `7.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _fitting(columns: Sequence[int], drops: Sequence[int], widths: Sequence[int], room: int) -> list[int]:
    """Those of the columns that there is room for."""
    shown = list(columns)
    while sum(widths[i] + _GAP for i in shown) - _GAP > room:
        least = max(shown, key=lambda i: drops[i])
        if drops[least] == 0:
            break  # what is left is folded
        shown.remove(least)
    return shown


def _clean(text: str, *, first_line: bool = True) -> str:
    lines = text.splitlines() or [""]
    return visible(lines[0]) if first_line else "\n".join(visible(line) for line in lines)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON")
