"""Messages of a row in one form, whatever form the row has them in. No template, no tokens.

A message is a mapping with `role` and `content`; roles are system, developer, user, assistant and tool, under whatever
name (`human`, `gpt`, `model` …). Tool calls have their arguments as an object, as templates expect them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from farstep.trainers.errors import DataError

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "function": "tool",
}
KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")


def messages_of(value: object, field: str) -> list[dict[str, Any]]:
    """
    Raises:
        DataError: no list of messages; says which message, and the keys that it has.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f"{type(value).__name__}, not a list of messages", field=field)
    if not value:
        raise DataError("there are no messages", field=field)
    return [_message(message, f"{field}[{index}]") for index, message in enumerate(value)]


def _message(message: object, field: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f"{type(message).__name__}, not a message with role and content", field=field)
    given = {key: value for key, value in message.items() if value is not None}
    role = given.pop("role", None) or given.pop("from", None)
    if not isinstance(role, str):
        raise DataError("no 'role'", field=field, hint=f"its keys are {', '.join(map(repr, message))}")
    known = _ROLES.get(role.lower(), role.lower())
    if known not in KNOWN_ROLES:
        raise DataError(f"unknown role {role!r}", field=field, hint=f"known are {', '.join(KNOWN_ROLES)}")
    if "content" not in given and "value" in given:
        given["content"] = given.pop("value")
    if given.get("tool_calls"):
        given["tool_calls"] = _tool_calls(given["tool_calls"], f"{field}.tool_calls")
    elif "content" not in given:
        raise DataError("no 'content'", field=field, hint=f"its keys are {', '.join(map(repr, message))}")
    else:
        given.pop("tool_calls", None)
    given["content"] = _content(given.get("content", ""), f"{field}.content")
    return {"role": known, **given}


def _content(content: object, field: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return "".join(_text_part(part, f"{field}[{index}]") for index, part in enumerate(content))
    raise DataError(f"{type(content).__name__}, not text", field=field)


def _text_part(part: object, field: str) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise DataError(f"a part of type {kind!r}, and only text can be trained", field=field)


def _tool_calls(calls: object, field: str) -> list[dict[str, Any]]:
    decoded = from_json(calls, field)
    if not isinstance(decoded, Sequence) or isinstance(decoded, str | bytes):
        raise DataError(f"{type(decoded).__name__}, not a list of calls", field=field)
    found = []
    for index, call in enumerate(decoded):
        place = f"{field}[{index}]"
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError("no function with a name", field=place)
        arguments = from_json(function.get("arguments") or {}, f"{place}.arguments")
        found.append(
            {
                **({"id": call["id"]} if call.get("id") else {}),
                "type": "function",
                "function": {"name": function["name"], "arguments": arguments},
            }
        )
    return found


def tools_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The tools that a row declares, as a list or as its JSON."""
    tools = from_json(row.get("tools"), "tools")
    if not tools:
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise DataError(f"{type(tools).__name__}, not a list of tools", field="tools")
    return list(tools)


def from_json(value: Any, field: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(f"no JSON: {error}", field=field) from error


def trained_turns(messages: Sequence[Mapping[str, Any]], which: str) -> list[int]:
    """The assistant's turns, without those whose `weight` is 0; "last": of them the last alone."""
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if which == "last":
        turns = turns[-1:]
    return [index for index in turns if messages[index].get("weight", 1)]


def bare(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Without what is for us and not for the template."""
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]
