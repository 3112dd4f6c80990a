"""Tokens to text as they come: no character is split, and nothing is said that a stop string may still take back.

What is said in pieces is, put together, what is said at once. Text that was said is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"  # what decoding gives for bytes that are no character, or none yet
_MOST_INCOMPLETE = 3  # bytes that a character may still lack
_CONTEXT = 6  # tokens before the new ones, which decide about spaces and characters that are split
_WINDOW = 24  # tokens that are decoded again each time, at most


class IncrementalText:
    """The text of one sequence, token by token.

    Args:
        context: tokens that come before it, whose text is not wanted.
    """

    def __init__(self, decode: Decode, *, context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(context[-_CONTEXT:])
        self._num_said = _certain(decode(self._ids)) if self._ids else 0

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self._ids = [*self._ids, token]
        text = self._decode(self._ids)
        end = _certain(text)
        new = text[self._num_said : end]
        self._num_said = max(self._num_said, end)
        if len(self._ids) >= _WINDOW:
            num_held = len(text) - self._num_said
            self._ids = self._ids[-_CONTEXT:]
            self._num_said = max(0, len(self._decode(self._ids)) - num_held)
        return new

    def flush(self) -> str:
        """What is left when no token follows; it ends in a character that is not complete, if in anything."""
        return self._decode(self._ids)[self._num_said :]


class ChoiceText:
    """The text of one choice: what a stop string or a stop token ended is cut before it."""

    def __init__(self, decode: Decode, *, context: Sequence[int], stops: Sequence[str]) -> None:
        self._text = IncrementalText(decode, context=context)
        self._stops = tuple(stops)
        self._held = ""

    def push(self, tokens: Sequence[int], stop_reason: str) -> str:
        """The text that the tokens add; `stop_reason` is why the last of them ended the sequence, or empty."""
        last = len(tokens) - 1 if stop_reason == "stop" else len(tokens)
        said = "".join(map(self._went_on, tokens[:last]))
        if stop_reason == "stop" and tokens:
            said += self._stopped(tokens[-1])
        elif stop_reason:
            said += self._held + self._text.flush()
        return said

    def _went_on(self, token: int) -> str:
        self._held += self._text.push(token)
        num_kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        said, self._held = self._held[: len(self._held) - num_kept], self._held[len(self._held) - num_kept :]
        return said

    def _stopped(self, token: int) -> str:
        """The last text: up to the stop string that the token completed, or all before it if it is a stop itself."""
        text = copy(self._text)
        whole = self._held + text.push(token) + text.flush()
        starts = [
            start for stop in self._stops if (start := whole.find(stop, max(0, len(self._held) - len(stop) + 1))) >= 0
        ]
        return whole[: min(starts)] if starts else self._held + self._text.flush()


def _certain(text: str) -> int:
    """How many of its characters the next token cannot change."""
    end = len(text)
    while end > len(text) - _MOST_INCOMPLETE and text[:end].endswith(_REPLACEMENT):
        end -= 1
    return end


def _overlap(text: str, stop: str) -> int:
    """The longest end of a text with which a stop string begins, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
