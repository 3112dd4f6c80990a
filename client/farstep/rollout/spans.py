"""Which kind each token of a prompt and of an answer is of.

A prompt's text is compared with what the chat template makes of its first messages, one more each time: where that ends
a message ends. So it holds for any template that writes messages one after the other, and needs none of its own. Where
a template writes an earlier message otherwise when others follow, a boundary is where the texts part.

Shapes: P tokens of a prompt, N of an answer.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from farstep.rollout.kinds import SpanKind
from farstep.rollout.turns import Message, Turn, text_of

_BLOCK = 32  # tokens that are decoded together where a tokenizer cannot say where they lie
_KINDS = {
    "system": SpanKind.SYSTEM,
    "developer": SpanKind.SYSTEM,
    "user": SpanKind.USER,
    "tool": SpanKind.TOOL_RESULT,
    "function": SpanKind.TOOL_RESULT,
    "assistant": SpanKind.CONTEXT,
}


class Tokenizer(Protocol):
    """What is needed of a tokenizer of transformers."""

    def decode(self, token_ids: Any, /, **settings: Any) -> Any: ...

    def apply_chat_template(self, conversation: Any, /, **settings: Any) -> Any: ...

    def __call__(self, text: Any, /, **settings: Any) -> Any: ...


class Spans:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def prompt_kinds(self, turn: Turn, *, start: int = 0, num_known: int = 0) -> list[SpanKind]:
        """[P - start], the kinds of a turn's prompt from a token on.

        Args:
            num_known: messages that lie before that token whole, or but for what the template puts behind them.
        """
        prompt = turn.prompt
        if start >= len(prompt):
            return []
        if not turn.messages:
            return [SpanKind.USER] * (len(prompt) - start)
        before = self.text(prompt[:start]) if start else ""
        text = before + self.text(prompt[start:])
        ends = self._ends(text, turn, first=num_known, at=len(before))
        places = _places(self._tokenizer, self.text, prompt[start:], text[len(before) :])
        return [_kind_at(len(before) + place, ends) for place in places]

    def answer_kinds(self, turn: Turn) -> list[SpanKind]:
        """[N]: text, or calls with their marks."""
        if not turn.tool_calls:
            return [SpanKind.ASSISTANT_TEXT] * len(turn.tokens)
        text, said = self.text(turn.tokens), turn.text
        num_before = common_length(said, text)
        after = said[num_before:]
        text_again = text.rfind(after, num_before) if after.strip() else -1
        places = _places(self._tokenizer, self.text, turn.tokens, text)
        is_text = [place < num_before or 0 <= text_again <= place for place in places]
        return [SpanKind.ASSISTANT_TEXT if each else SpanKind.TOOL_CALL for each in is_text]

    def _ends(self, text: str, turn: Turn, *, first: int, at: int) -> list[tuple[int, SpanKind]]:
        """Where each message's part of the text ends, with its kind, in order."""
        ends: list[tuple[int, SpanKind]] = []
        messages = [for_template(message) for message in turn.messages]
        if first == 0 and _KINDS.get(messages[0]["role"]) is not SpanKind.SYSTEM:
            ends.append((self._preamble(text, messages[0], turn.tools), SpanKind.SYSTEM))
        elif first:
            # what the template puts behind the message that was sampled last
            known = self._render(messages[:first], turn.tools)
            at = max(at, common_length(known, text) if known is not None else 0)
            ends.append((at, SpanKind.CONTEXT))
        for index in range(first, len(messages)):
            rendered = self._render(messages[: index + 1], turn.tools)
            if rendered is not None:
                at = max(at, common_length(rendered, text))
                ends.append((at, _KINDS.get(messages[index]["role"], SpanKind.USER)))
        return ends

    def _preamble(self, text: str, message: dict[str, Any], tools: Sequence[Mapping[str, Any]] | None) -> int:
        """How much of the text a template puts before the first message, such as its tools."""
        other = {**message, "content": ("-" if str(message["content"])[:1] != "-" else "+")}
        here, there = self._render([message], tools), self._render([other], tools)
        if here is None or there is None:
            return 0
        header_end = common_length(here, there)
        twice, twice_other = self._render([message, message], tools), self._render([message, other], tools)
        if twice is None or twice_other is None:
            return 0
        header = twice[len(here) : common_length(twice, twice_other)]
        start = header_end - len(header)
        return start if start > 0 and here[start:header_end] == header and text.startswith(here[:start]) else 0

    def _render(self, messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str | None:
        """The text of messages; None where the template refuses them, as some do with dialogues that end early."""
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tools=list(tools) if tools else None, tokenize=False, add_generation_prompt=False
            )
        except Exception:  # templates raise whatever they like
            return None
        return text


def for_template(message: Message) -> dict[str, Any]:
    """A message of the API as chat templates take it: text as a string, a call's arguments as an object."""
    plain = {
        key: value for key, value in message.items() if value is not None and key not in ("refusal", "annotations")
    }
    plain["content"] = text_of(message)
    if message.get("tool_calls"):
        plain["tool_calls"] = [_call_for_template(call) for call in message["tool_calls"]]
    else:
        plain.pop("tool_calls", None)
    return plain


def _call_for_template(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            function["arguments"] = json.loads(arguments or "{}")
    return {"id": call.get("id", ""), "type": "function", "function": function}


def _places(
    tokenizer: Tokenizer, decode: Callable[[Sequence[int]], str], tokens: Sequence[int], text: str
) -> list[int]:
    """[N], the character of the text at which each token begins."""
    try:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if list(found["input_ids"]) == list(tokens):
            return [begin for begin, _ in found["offset_mapping"]]
    except (NotImplementedError, TypeError, KeyError):  # a tokenizer in Python alone
        pass
    places: list[int] = []
    base = 0
    for at in range(0, len(tokens), _BLOCK):
        block = tokens[at : at + _BLOCK]
        places += [base + len(decode(block[:size])) for size in range(len(block))]
        base += len(decode(block))
    return places


def _kind_at(place: int, ends: Sequence[tuple[int, SpanKind]]) -> SpanKind:
    return next((kind for end, kind in ends if place < end), SpanKind.CONTEXT)


def common_length(first: str, second: str) -> int:
    """How many characters two texts begin with together."""
    if second.startswith(first):
        return len(first)
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
