"""Calls as bare JSON with prose around, as models write them that were taught no format, or another one.

An object, or a list of objects, with `name` (or `tool`, `function`) and `arguments` (or `parameters`), in a code fence
or none. Where the request has one tool alone, an object of nothing but parameters of that tool is a call of it.
Invariant: what is no call is text, to the letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from farstep_sampler.openai_api.tools.parsing import Call, Part, call_of
from farstep_sampler.openai_api.tools.schemas import properties_of

_FENCE_BEFORE = re.compile(r"```(?:json|tool_call)?[ \t]*\n?\s*\Z")
_FENCE_AFTER = re.compile(r"\s*```")
_NAMES = ("name", "tool", "tool_name", "function")
_MOST_TRIED = 200  # brackets that begin no call, before a text is taken for one without calls
_ARGUMENTS = ("arguments", "parameters", "args", "input")


class LooseJson:
    """Holds text back from the first bracket on, since what follows decides."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._text = ""
        self._is_held = False
        self.errors: list[str] = []

    def push(self, text: str) -> list[Part]:
        self._text += text
        if self._is_held:
            return []
        start = min((place for mark in "{[`" if (place := self._text.find(mark)) >= 0), default=-1)
        if start < 0:
            said, self._text = self._text, ""
            return [said] if said else []
        self._is_held = True
        said, self._text = self._text[:start], self._text[start:]
        return [said] if said else []

    def finish(self) -> list[Part]:
        text, self._text = self._text, ""
        parts: list[Part] = []
        said_to = at = num_tried = 0
        while (at := _next_bracket(text, at)) >= 0 and num_tried < _MOST_TRIED:
            found = self._calls_at(text, at)
            if found is None:
                at, num_tried = at + 1, num_tried + 1
                continue
            calls, end = found
            before = text[said_to:at]
            if (fence := _FENCE_BEFORE.search(before)) is not None and (after := _FENCE_AFTER.match(text, end)):
                before, end = before[: fence.start()], after.end()
            parts += ([before] if before else []) + list(calls)
            said_to = at = end
        rest = text[said_to:]
        if not any(isinstance(part, Call) for part in parts) and _looks_like_a_call(rest):
            self.errors.append(rest.strip())
        return [*parts, rest] if rest else parts

    def _calls_at(self, text: str, at: int) -> tuple[list[Call], int] | None:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        values = value if isinstance(value, list) else [value]
        calls = [call for each in values if (call := self._call(each)) is not None]
        return (calls, end) if calls and len(calls) == len(values) else None

    def _call(self, value: object) -> Call | None:
        if not isinstance(value, dict):
            return None
        if isinstance(inner := value.get("function"), Mapping):
            return self._call(dict(inner))
        name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
        if name in self._names:
            arguments: object = next((value[key] for key in _ARGUMENTS if key in value), {})
            return call_of({"name": name, "arguments": arguments}, self._names)
        return self._inferred(value)

    def _inferred(self, value: dict[str, Any]) -> Call | None:
        if len(self._names) != 1:
            return None
        (only,) = self._names
        if set(value) == {"arguments"} or set(value) == {"parameters"}:
            return call_of({"name": only, **value}, self._names)
        properties = properties_of(self._names, only)
        if not value or not set(value) <= set(properties):
            return None
        return call_of({"name": only, "arguments": value}, self._names)


def _next_bracket(text: str, at: int) -> int:
    return min((place for mark in "{[" if (place := text.find(mark, at)) >= 0), default=-1)


def _looks_like_a_call(text: str) -> bool:
    return "{" in text and any(f'"{key}"' in text for key in ("name", "arguments", "parameters"))
