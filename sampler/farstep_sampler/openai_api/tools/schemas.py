"""The arguments of calls that are written without JSON's types, as their tools' schemas have them.

Formats like `<parameter=days>3</parameter>` say nothing of a value's type: the schema decides, and where it says
nothing either, what is JSON is taken as such and the rest is a string. Refuses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

Schemas = Mapping[str, Mapping[str, Any]]


def properties_of(names: Collection[str], name: str) -> Mapping[str, Any]:
    """The schemas of a tool's parameters; none where only the names of the tools are known."""
    schema = names.get(name) if isinstance(names, Mapping) else None
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def typed(text: str, schema: object) -> object:
    """What the text of an argument stands for."""
    kinds = _kinds(schema)
    if kinds == {"string"}:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(text.strip(), text)
    if kinds and isinstance(value, str | float | int | bool) and "string" in kinds and _kind(value) not in kinds:
        return text
    return value


def _kinds(schema: object) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    kinds = schema.get("type", ())
    if "enum" in schema and not kinds:
        return {_kind(each) for each in schema["enum"]}
    found = {kinds} if isinstance(kinds, str) else {each for each in kinds if isinstance(each, str)}
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found |= _kinds(choice)
    return found


def _kind(value: object) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case None:
            return "null"
        case list():
            return "array"
        case _:
            return "object"
