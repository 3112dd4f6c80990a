"""Messages of rows, whatever they are called there."""

from __future__ import annotations

from typing import Any

import pytest

from farstep.trainers.data.conversation import messages_of, trained_turns
from farstep.trainers.data.roles import renamed, with_roles
from farstep.trainers.errors import DataError

SHARED = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "id": 1}


def test_columns() -> None:
    row = {"question": "a", "answer": {"text": "b"}, "sys": "", "other": 1}
    mapping = {"system": "sys", "user": "question", "assistant": "answer.text"}
    expected = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert with_roles(row, mapping, None) == {**row, "messages": expected}
    assert with_roles({**row, "sys": "s"}, mapping, None)["messages"][0] == {"role": "system", "content": "s"}


def test_nested_arrays() -> None:
    mapping = {"user": "conversations.from.human", "assistant": "conversations.from.gpt"}
    expected = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert with_roles(SHARED, mapping, None)["messages"] == expected
    other = {"turns": [{"who": "q", "words": "a"}, {"who": "r", "words": "b"}]}
    assert with_roles(other, {"user": "turns.who.q", "assistant": "turns.who.r"}, "words")["messages"] == expected


@pytest.mark.parametrize(
    ("row", "mapping", "content_key", "message"),
    [
        ({"q": "a", "r": "b"}, {"user": "question"}, None, r"role_mapping\.user: no 'question'.*its keys are 'q', 'r'"),
        ({"q": {"x": 1}}, {"user": "q.y"}, None, r"no 'y' \(q\.y\) \(its keys are 'x'\)"),
        ({"q": "a"}, {"user": "q.y"}, None, r"str has no keys"),
        (SHARED, {"user": "conversations.from.user"}, None, r"conversations\[0\]: no role is mapped to from = 'human'"),
        (
            SHARED,
            {"user": "conversations.who.user"},
            None,
            r"conversations\[0\]: no role.*its keys are 'from', 'value'",
        ),
        (SHARED, {"user": "conversations.from.human"}, "text", r"\[0\]: no 'text' \(its keys are 'from', 'value'; set"),
        (SHARED, {"user": "conversations"}, None, r"is no place in an array of turns"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    row: dict[str, Any], mapping: dict[str, str], content_key: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        with_roles(row, mapping, content_key)


def test_columns_are_renamed() -> None:
    assert renamed({"q": "a", "r": {"x": "b"}, "z": 1}, {"prompt": "q", "response": "r.x"}) == {
        "prompt": "a",
        "response": "b",
        "z": 1,
    }
    with pytest.raises(DataError, match=r"columns\.prompt: no 'p'.*its keys are 'q'"):
        renamed({"q": 1}, {"prompt": "p"})


def test_roles_have_many_names() -> None:
    given = [{"role": role, "content": "x"} for role in ("System", "human", "GPT", "model", "function", "developer")]
    roles = [message["role"] for message in messages_of(given, "messages")]
    assert roles == ["system", "user", "assistant", "assistant", "tool", "developer"]


def test_contents_may_be_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages_of([{"role": "user", "content": parts, "name": None}], "m") == [{"role": "user", "content": "ab"}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "m: str, not a list of messages"),
        ([], "m: there are no messages"),
        (["hello"], r"m\[0\]: str, not a message"),
        ([{"content": "a"}], r"m\[0\]: no 'role' \(its keys are 'content'\)"),
        ([{"role": "user"}], r"m\[0\]: no 'content' \(its keys are 'role'\)"),
        ([{"role": "user", "content": None}], r"m\[0\]: no 'content'"),
        ([{"role": "user", "content": "a"}, {"role": "king", "content": "a"}], r"m\[1\]: unknown role 'king'"),
        ([{"role": "user", "content": 3}], r"m\[0\]\.content: int, not text"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"content\[0\]: a part of type 'image'"),
        ([{"role": "assistant", "tool_calls": [{}]}], r"tool_calls\[0\]: no function with a name"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            r"tool_calls\[0\]\.arguments: no JSON",
        ),
    ],
)
def test_what_is_no_message_is_told(messages: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        messages_of(messages, "m")


def test_which_turns_are_learnt() -> None:
    roles = ["assistant", "user", "assistant", "tool", "assistant"]
    messages: list[dict[str, Any]] = [{"role": role, "content": ""} for role in roles]
    assert trained_turns(messages, "all") == [0, 2, 4]
    assert trained_turns(messages, "last") == [4]
    messages[4]["weight"] = 0
    assert trained_turns(messages, "all") == [0, 2]
    assert trained_turns(messages, "last") == []
