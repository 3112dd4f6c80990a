"""Conversations as tokens, with the assistant's marked: by the tokenizer's own template, and exactly.

A turn's span is not searched for. The template renders what stands before the turn, as it does when the turn is about
to be sampled, and what stands after it; the turn is what the second has more. That both are beginnings of the whole is
checked for every turn: a template that changes earlier turns as the conversation goes on is refused, with the place.

What follows a turn's last special token, such as the line break after `<|im_end|>`, is the template's and not trained:
whoever samples stops before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from farstep.trainers.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Span = tuple[int, int]
_EMPTY_THINK = re.compile(r"\s*<think>\s*</think>\s*")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text, and the spans of it (in characters, in order, apart from each other) that are to be learnt."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A tokenizer's chat template, with what stays the same for all conversations."""

    tokenizer: PreTrainedTokenizerBase
    text: str | None = None
    kwargs: Mapping[str, Any] | None = None

    @property
    def exists(self) -> bool:
        return self.text is not None or getattr(self.tokenizer, "chat_template", None) is not None

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None, *, ask: bool) -> str:
        """
        Args:
            ask: end with what makes the model answer.

        Raises:
            DataError: the tokenizer has no template, or its template refuses these messages.
        """
        from jinja2 import TemplateError

        if not self.exists:
            raise DataError("the tokenizer has no chat template", hint="give data.chat_template")
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=list(tools) if tools else None,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=ask,
                **(self.kwargs or {}),
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise DataError(f"the chat template refuses it: {error} (roles: {roles})") from error
        return text


def rendered(
    template: Template,
    messages: Sequence[Message],
    trained: Sequence[int],
    *,
    tools: Sequence[Any] | None = None,
    split: bool = False,
    ignore_empty_think: bool = False,
) -> list[Rendered]:
    """The conversation with the spans of the turns `trained` (indices, in order), as one text.

    Args:
        split: give several texts where the template changes earlier turns: each ends with the turns that it trains.
        ignore_empty_think: do not train `<think></think>` with nothing in it at a turn's beginning.

    Raises:
        DataError: the template refuses the messages, or changes earlier turns, and `split` is False.
    """
    whole = template.render(messages, tools, ask=False)
    texts: list[Rendered] = []
    text, spans = "", list[Span]()
    for index in trained:
        span, after = _turn(template, messages, index, tools)
        if not split:
            _check_beginning(whole, after[: span[1]], messages, index)
        elif spans and after[: spans[-1][1]] != text[: spans[-1][1]]:
            texts.append(Rendered(text, tuple(spans)))
            spans = []
        start = _after_empty_think(after, span) if ignore_empty_think else span[0]
        text = after
        spans.append((start, span[1]))
    if spans or not split:
        texts.append(Rendered(text if split else whole, tuple(spans)))
    return texts


def _turn(template: Template, messages: Sequence[Message], index: int, tools: Sequence[Any] | None) -> tuple[Span, str]:
    """Where the turn is in the conversation up to it, and that conversation's text."""
    after = template.render(messages[: index + 1], tools, ask=False)
    before = _asked(template, messages[:index], tools)
    if before is None or not after.startswith(before):
        before = _header(template, messages, index, tools, after)
    return (len(before), len(after)), after


def _asked(template: Template, messages: Sequence[Message], tools: Sequence[Any] | None) -> str | None:
    try:
        return template.render(messages, tools, ask=True)
    except DataError:
        if messages:
            raise
        return None  # many templates cannot begin with an answer to nothing


def _header(
    template: Template, messages: Sequence[Message], index: int, tools: Sequence[Any] | None, after: str
) -> str:
    """What the template puts before the turn's own text, where it asks in other words than it records the answer."""
    probes = [
        template.render([*messages[:index], {"role": messages[index]["role"], "content": content}], tools, ask=False)
        for content in ("a", "b")
    ]
    header = probes[0][: _num_common(*probes)]
    if not after.startswith(header):
        raise DataError(
            f"the chat template renders turn {index} so that its beginning cannot be told: {_difference(after, header)}"
        )
    return header


def _check_beginning(whole: str, part: str, messages: Sequence[Message], index: int) -> None:
    if whole.startswith(part):
        return
    raise DataError(
        f"the chat template changes turn {index} ({messages[index]['role']}) or one before it when the conversation "
        f"goes on: {_difference(whole, part)}",
        hint="data.on_rewritten_turns: split makes a row of each turn as it was sampled; "
        "data.train_on: last trains the last alone",
    )


def _difference(whole: str, part: str) -> str:
    at = _num_common(whole, part)
    return f"at character {at}, {whole[at : at + 40]!r} is not {part[at : at + 40]!r}"


def _num_common(one: str, other: str) -> int:
    """Characters that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _after_empty_think(text: str, span: Span) -> int:
    found = _EMPTY_THINK.match(text, span[0], span[1])
    return found.end() if found else span[0]
