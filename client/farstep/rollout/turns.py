"""`Turn`: one answer of a policy, with the tokens that it was asked with and those that it gave.

Turns come from the proxy, which sees them pass, or from answers that an agent hands over. Only an answer with token ids
and log-probabilities is one: nothing is tokenized anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from farstep.trainers.errors import RolloutError

Message = Mapping[str, Any]


_IDS: dict[int, int] = {}


def shared_ids(ids: Iterable[int]) -> tuple[int, ...]:
    """The same numbers, each as one object in this process: a token costs the place in a list, not a number, too."""
    return tuple(_IDS.setdefault(each, each) for each in ids)


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of N tokens to a prompt of P tokens.

    Args:
        prompt: [P].
        tokens, logprobs, versions: [N]; the stop token is among them.
        messages: what was asked; `reply` is the message that came back.
        request_id: the same for all choices of one request.
        call_errors: pieces of the text that looked like calls and are none.
        is_models_own: whether it was sampled from the model's own distribution (no temperature, grammar and the like).
    """

    prompt: Sequence[int] = field(repr=False)
    tokens: Sequence[int] = field(repr=False)
    logprobs: Sequence[float] = field(repr=False)
    versions: Sequence[int] = field(repr=False)
    messages: Sequence[Message] = field(default=(), repr=False)
    reply: Message = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None
    finish_reason: str = "stop"
    request_id: str = ""
    call_errors: Sequence[str] = ()
    is_models_own: bool = True

    def __post_init__(self) -> None:
        sizes = {len(self.tokens), len(self.logprobs), len(self.versions)}
        if len(sizes) > 1:
            raise RolloutError(
                f"{len(self.tokens)} tokens, {len(self.logprobs)} log-probabilities, {len(self.versions)} versions",
                field="turn",
            )

    @property
    def text(self) -> str:
        """What the reply says; calls are no part of it."""
        return text_of(self.reply)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """`{id, name, arguments}` of each; `arguments` is JSON text."""
        return calls_of(self.reply)


def turns_of(
    answer: Mapping[str, Any],
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    *,
    is_models_own: bool = True,
) -> list[Turn]:
    """A turn for each choice of a chat completion.

    Raises:
        RolloutError: it has no token ids or log-probabilities.
    """
    choices = answer.get("choices") or []
    prompt = shared_ids(answer["prompt_token_ids"]) if answer.get("prompt_token_ids") is not None else None
    found = [_turn(answer, choice, prompt) for choice in choices]
    about: dict[str, Any] = {"messages": tuple(messages), "tools": tools, "is_models_own": is_models_own}
    return [replace(turn, **about) for turn in found]


def _turn(answer: Mapping[str, Any], choice: Mapping[str, Any], prompt: Sequence[int] | None) -> Turn:
    tokens, content = choice.get("token_ids"), (choice.get("logprobs") or {}).get("content")
    if tokens is None or prompt is None or content is None:
        raise RolloutError(
            "the answer has no token ids or log-probabilities",
            field="response",
            hint="ask through the session's proxy, which adds them",
        )
    versions = choice.get("policy_versions") or [answer.get("policy_version", 0)] * len(tokens)
    return Turn(
        prompt=prompt,
        tokens=shared_ids(tokens),
        logprobs=tuple(each["logprob"] for each in content),
        versions=shared_ids(versions),
        reply=choice["message"],
        finish_reason=choice.get("finish_reason") or "stop",
        request_id=str(answer.get("id", "")),
        call_errors=tuple(choice.get("tool_call_errors") or ()),
    )


def text_of(message: Message) -> str:
    """The text of a message, whether it is a string or in parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or () if isinstance(part, Mapping))


def calls_of(message: Message) -> list[dict[str, Any]]:
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        calls.append(
            {"id": call.get("id") or "", "name": function.get("name"), "arguments": function.get("arguments") or ""}
        )
    return calls


def same_messages(first: Sequence[Message], second: Sequence[Message]) -> bool:
    """Whether they say the same, however their absent fields are written."""
    return len(first) == len(second) and all(_said(a) == _said(b) for a, b in zip(first, second, strict=True))


def _said(message: Message) -> tuple[Any, ...]:
    calls = tuple((call["name"], _canonical(call["arguments"])) for call in calls_of(message))
    role = message.get("role")
    return ("system" if role == "developer" else role, text_of(message), calls)


def _canonical(arguments: object) -> str:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return str(arguments)
    return json.dumps(arguments, sort_keys=True)
