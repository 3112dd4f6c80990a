"""A model's text taken apart into what it says and what it calls, as the text comes.

A parser never fails: what looks like a call and is none (no JSON, no such tool, cut off in the middle) is text, to the
letter. A call is given whole, when its text is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Call:
    """`arguments` is JSON of an object, as the model wrote it where it wrote JSON."""

    name: str
    arguments: str


Part = str | Call


class ToolParser(Protocol):
    errors: list[str]  # what looked like a call, was none, and so is text

    def push(self, text: str) -> list[Part]:
        """What is certain now: text, and calls that are complete."""
        ...

    def finish(self) -> list[Part]:
        """What is left when nothing follows."""
        ...


Read = Callable[[str], list[Call] | None]


class Tagged:
    """Calls between two marks, any number of them, with text around.

    Args:
        read: the calls in what stands between the marks, or None where it is none.
    """

    def __init__(self, begin: str, end: str, read: Read) -> None:
        self._begin = begin
        self._end = end
        self._read = read
        self._text = ""
        self._is_inside = False
        self.errors: list[str] = []

    def push(self, text: str) -> list[Part]:
        self._text += text
        parts: list[Part] = []
        while True:
            mark = self._end if self._is_inside else self._begin
            before, found, after = self._text.partition(mark)
            if not found:
                break
            parts += self._inside(before, closed=True) if self._is_inside else _texts(before)
            self._is_inside, self._text = not self._is_inside, after
        if not self._is_inside:
            kept = overlap(self._text, self._begin)
            parts += _texts(self._text[: len(self._text) - kept])
            self._text = self._text[len(self._text) - kept :]
        return parts

    def finish(self) -> list[Part]:
        text, self._text = self._text, ""
        # Models leave out the last mark when a stop token says the same.
        return self._inside(text, closed=False) if self._is_inside else _texts(text)

    def _inside(self, text: str, *, closed: bool) -> list[Part]:
        calls = self._read(text)
        if calls is None:
            self.errors.append(self._begin + text + (self._end if closed else ""))
            return [self.errors[-1]]
        return [*calls]


class Trailing:
    """Calls from a place in the text on to its end.

    Args:
        marks: what the calls follow, anywhere; a mark is no part of them.
        opening: with what calls begin where they are all of the text; empty where they need a mark.
    """

    def __init__(self, read: Read, *, marks: Sequence[str] = (), opening: str = "") -> None:
        self._read = read
        self._marks = marks
        self._opening = opening
        self._text = ""  # not said yet: what may be a call, or the beginning of a mark
        self._mark: str | None = None  # the one that was met; empty for an opening
        self._has_begun = False
        self.errors: list[str] = []

    def push(self, text: str) -> list[Part]:
        self._text += text
        if self._mark is not None:
            return []
        places = [(place, mark) for mark in self._marks if (place := self._text.find(mark)) >= 0]
        if places:
            place, self._mark = min(places)
            before, self._text = self._text[:place], self._text[place + len(self._mark) :]
            return _texts(before)
        if not self._has_begun and self._opening:
            begun = self._text.lstrip()
            if not begun:
                return []
            if begun.startswith(self._opening):
                self._mark = ""
                return []
        kept = max((overlap(self._text, mark) for mark in self._marks), default=0)
        said, self._text = self._text[: len(self._text) - kept], self._text[len(self._text) - kept :]
        self._has_begun = self._has_begun or bool(said.strip())
        return _texts(said)

    def finish(self) -> list[Part]:
        text, self._text = self._text, ""
        if self._mark is None:
            return _texts(text)
        calls = self._read(text)
        if calls is None:
            self.errors.append(self._mark + text)
        return _texts(self._mark + text) if calls is None else [*calls]


def overlap(text: str, mark: str) -> int:
    """The longest end of a text with which a mark begins, but not all of it."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


def call_of(value: object, names: Collection[str]) -> Call | None:
    """The call that {"name": …, "arguments" or "parameters": {…}} stands for, if it is one of the tools."""
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models write JSON in JSON
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))


def calls_of(values: list[object], names: Collection[str]) -> list[Call] | None:
    """All of them, or None where there is none or one is none."""
    calls = [call for value in values if (call := call_of(value, names)) is not None]
    return calls if calls and len(calls) == len(values) else None


def parse_json(text: str) -> object:
    """The value, or None for what is none; too deep nesting is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _texts(text: str) -> list[Part]:
    return [text] if text else []
