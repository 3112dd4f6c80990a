"""Where a sequence ends: token ids, and strings found across token boundaries.

Text is decoded as it grows, with enough tokens before it that a tokenizer's treatment of first words and of
characters split over tokens does not matter. The model's prompt is context for decoding; a match lies in
generated text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_CONTEXT_TOKENS = 6
_REPLACEMENT = "\ufffd"  # what decoding gives for a character that is not complete yet

Decode = Callable[[Sequence[int]], str]


class StopStrings:
    """Watches one sequence for strings; it keeps no more text than a match needs."""

    def __init__(self, strings: tuple[str, ...], *, prompt: Sequence[int], decode: Decode) -> None:
        assert strings
        assert all(strings)
        self._strings = strings
        self._keep = max(map(len, strings)) - 1
        self._decode = decode
        self._ids = list(prompt[-_CONTEXT_TOKENS:])
        self._num_read = len(self._ids)  # of `_ids`, those whose text is known
        self._text = ""

    def push(self, token: int, *, may_match: bool = True) -> bool:
        """Takes the next token; True if its text completes one of the strings, which it may be too early for."""
        self._ids.append(token)
        new = self._read()
        if not new:
            return False
        self._text += new
        is_match = any(string in self._text for string in self._strings)
        if is_match and not may_match:
            self._pass_over()
        self._text = self._text[-self._keep :] if self._keep else ""
        return is_match and may_match

    def _pass_over(self) -> None:
        """Cuts the text so far that what came too early is not found later; what it only began stays."""
        starts = [self._text.rfind(string) for string in self._strings]
        self._text = self._text[max(starts) + 1 :]

    def _read(self) -> str:
        """The text that the unread tokens add, or nothing while their last character is incomplete."""
        whole, known = self._decode(self._ids), self._decode(self._ids[: self._num_read])
        if whole.endswith(_REPLACEMENT) and len(self._ids) - self._num_read < _CONTEXT_TOKENS:
            return ""
        first = max(0, self._num_read - _CONTEXT_TOKENS)
        self._ids = self._ids[first:]
        self._num_read = len(self._ids)
        return whole[len(known) :]
