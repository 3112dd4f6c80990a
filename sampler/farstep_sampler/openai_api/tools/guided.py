"""Calls that a request insists on: the schema that its text must match, and the calls in that text.

`required` makes the text a list of calls of any of the tools, a named tool makes it that tool's arguments.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from farstep_sampler.openai_api.tools.messages import Function
from farstep_sampler.openai_api.tools.parsing import Call, Part, Trailing, calls_of, parse_json


def schema_of(tools: Sequence[Function], *, named: str | None, at_most: int | None) -> dict[str, Any]:
    """A JSON schema. Definitions (`$defs`) of the tools' parameters are put where references look for them."""
    if named is not None:
        return next(tool.parameters or {"type": "object"} for tool in tools if tool.name == named)
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        parameters = dict(tool.parameters or {"type": "object"})
        definitions |= parameters.pop("$defs", {})
        properties = {"name": {"const": tool.name}, "parameters": parameters}
        required = ["name", "parameters"]
        calls.append({"type": "object", "properties": properties, "required": required, "additionalProperties": False})
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if at_most is not None:
        schema["maxItems"] = at_most
    return schema | ({"$defs": definitions} if definitions else {})


class GuidedList(Trailing):
    """Reads what matches `schema_of` without a name."""

    def __init__(self, names: Sequence[str]) -> None:
        def read(text: str) -> list[Call] | None:
            values = parse_json(text)
            return calls_of(values, names) if isinstance(values, list) else None

        super().__init__(read, opening="[")


class GuidedArguments:
    """Reads the arguments of one tool: a call where they are whole, text where `max_tokens` cut them off."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._text = ""
        self.errors: list[str] = []

    def push(self, text: str) -> list[Part]:
        self._text += text
        return []

    def finish(self) -> list[Part]:
        value = parse_json(self._text)
        if isinstance(value, dict):
            return [Call(self._name, json.dumps(value, ensure_ascii=False))]
        self.errors += [self._text] if self._text else []
        return [*self.errors]
