"""`role_mapping`: messages from columns, or from nested arrays of turns, that are called otherwise.

    {system: prompt, user: question, assistant: answer}            columns, in this order (a.b: inside a mapping)
    {user: conversations.from.human, assistant: conversations.from.gpt}      array . key of the role . its value

What is not there is told with the keys, or the roles, that are. `columns` renames single columns in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from farstep.trainers.errors import DataError

_CONTENT_KEYS = ("content", "value", "text")


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with our names for the columns that `columns` names; the others stay."""
    theirs = {path.split(".")[0] for path in columns.values()}
    kept = {key: value for key, value in row.items() if key not in theirs}
    return kept | {ours: _at(row, path, f"columns.{ours}") for ours, path in columns.items()}


def with_roles(row: Mapping[str, Any], mapping: Mapping[str, str], content_key: str | None) -> dict[str, Any]:
    """The row with `messages` as the mapping says.

    Raises:
        DataError: a column, a key or a role is not there; the message lists those that are.
    """
    first = next(iter(mapping.values()), "").split(".")[0]
    nested = isinstance(row.get(first), Sequence) and not isinstance(row[first], str | bytes)
    messages = _from_array(row, mapping, content_key) if nested else _from_columns(row, mapping)
    return {**{key: value for key, value in row.items() if key != "messages"}, "messages": messages}


def _from_columns(row: Mapping[str, Any], mapping: Mapping[str, str]) -> list[dict[str, Any]]:
    found = [{"role": role, "content": _at(row, path, f"role_mapping.{role}")} for role, path in mapping.items()]
    return [message for message in found if message["content"] not in (None, "") or message["role"] != "system"]


def _from_array(row: Mapping[str, Any], mapping: Mapping[str, str], content_key: str | None) -> list[dict[str, Any]]:
    paths = {role: path.split(".") for role, path in mapping.items()}
    for role, path in paths.items():
        if len(path) != 3 or path[0] != next(iter(paths.values()))[0]:
            raise DataError(
                f"{'.'.join(path)!r} is no place in an array of turns",
                field=f"role_mapping.{role}",
                hint="write array.key.value, as in conversations.from.human, with one array for all roles",
            )
    array = next(iter(paths.values()))[0]
    roles = {(path[1], path[2]): role for role, path in paths.items()}
    return [_turn(turn, f"{array}[{index}]", roles, content_key) for index, turn in enumerate(row[array])]


def _turn(turn: Any, field: str, roles: Mapping[tuple[str, str], str], content_key: str | None) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{type(turn).__name__}, not a mapping", field=field)
    role = next((role for (key, value), role in roles.items() if key in turn and str(turn[key]) == value), None)
    if role is None:
        keys = sorted({key for key, _ in roles})
        seen = ", ".join(f"{key} = {turn[key]!r}" for key in keys if key in turn)
        raise DataError(f"no role is mapped to {seen or 'it'}", field=field, hint=_keys(turn))
    key = content_key or next((key for key in _CONTENT_KEYS if key in turn), None)
    if key is None or key not in turn:
        raise DataError(
            f"no {content_key or ' or '.join(_CONTENT_KEYS)!r}", field=field, hint=f"{_keys(turn)}; set content_key"
        )
    return {"role": role, "content": turn[key]}


def _at(row: Mapping[str, Any], path: str, field: str) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            found = _keys(value) if isinstance(value, Mapping) else f"{type(value).__name__} has no keys"
            raise DataError(f"no {name!r} ({path})", field=field, hint=found)
        value = value[name]
    return value


def _keys(row: Mapping[str, Any]) -> str:
    return f"its keys are {', '.join(map(repr, row)) or 'none'}"
