"""Texts as tokens, and spans of characters as masks over them. A token is wholly inside a span or wholly outside.

A text is tokenised whole, as everybody does who reads it. Where a token would reach over the edge of a span, the text
is cut there and its parts are tokenised apart, as they are when the model is asked and answers; that the parts' tokens
still spell the whole text is checked.

Shapes: T tokens of a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from farstep.trainers.data.chat import Rendered
from farstep.trainers.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Masked:
    """`tokens` [T], and `mask` [T]: 1.0 where a token is to be learnt. `retokenized`: it was cut at a span's edge."""

    tokens: list[int]
    mask: list[float]
    retokenized: bool = False


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    token: int


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text's tokens and no others: nothing is put before or after it, nothing is cut."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return list(ids)


def masked(tokenizer: PreTrainedTokenizerBase, rendered: Rendered) -> Masked:
    """
    Raises:
        DataError: the tokenizer cannot say which token is where, or its tokens do not spell the text.
    """
    edges = sorted({edge for span in rendered.spans for edge in span} - {0, len(rendered.text)})
    pieces = _pieces(tokenizer, rendered.text, 0)
    crossed = pieces is None or any(_crosses(piece, edges) for piece in pieces)
    if crossed:
        pieces = _cut_pieces(tokenizer, rendered.text, edges)
    assert pieces is not None
    ids = [piece.token for piece in pieces]
    weights = [0.0] * len(ids)
    for start, end in rendered.spans:
        inside = [i for i, piece in enumerate(pieces) if start <= piece.start and piece.end <= end]
        for i in inside:
            weights[i] = 1.0
        _unmark_tail(tokenizer, ids, weights, inside)
    return Masked(ids, weights, crossed)


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str, base: int) -> list[_Piece] | None:
    """Tokens with the characters that they stand for; None for a tokenizer that cannot say.

    A tokenizer may leave spaces out of a token's place: what lies between two tokens belongs to the second.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    found: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    pieces = []
    reached = 0
    for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
        if text[reached:start].strip():
            raise DataError(f"the tokenizer has no token for {text[reached:start]!r}, character {base + reached}")
        pieces.append(_Piece(base + (reached if start > reached else start), base + end, token))
        reached = max(reached, end)
    if text[reached:].strip() or (text and not pieces):
        raise DataError(f"the tokenizer has no token for {text[reached:][:40]!r}, character {base + reached}")
    return pieces


def _crosses(piece: _Piece, edges: Sequence[int]) -> bool:
    return any(piece.start < edge < piece.end for edge in edges)


def _cut_pieces(tokenizer: PreTrainedTokenizerBase, text: str, edges: Sequence[int]) -> list[_Piece]:
    pieces: list[_Piece] = []
    for start, end in pairwise([0, *edges, len(text)]):
        part = text[start:end]
        placed = _pieces(tokenizer, part, start)
        pieces += placed if placed is not None else [_Piece(start, end, token) for token in token_ids(tokenizer, part)]
    spelt, whole = (
        _decoded(tokenizer, [piece.token for piece in pieces]),
        _decoded(tokenizer, token_ids(tokenizer, text)),
    )
    if spelt != whole:
        at = next(
            (i for i, (a, b) in enumerate(zip(spelt, whole, strict=False)) if a != b), min(len(spelt), len(whole))
        )
        raise DataError(
            f"the text cannot be cut into turns without changing its tokens: at character {at}, "
            f"{spelt[at : at + 40]!r} is not {whole[at : at + 40]!r}"
        )
    return pieces


def _unmark_tail(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], weights: list[float], inside: Sequence[int]
) -> None:
    """Unmarks white space that follows the last special token of a span: nobody samples it."""
    special = _special_ids(tokenizer)
    last = next((i for i in reversed(inside) if ids[i] in special), None)
    rest = [i for i in inside if last is not None and i > last]
    if rest and not _decoded(tokenizer, [ids[i] for i in rest]).strip():
        for i in rest:
            weights[i] = 0.0


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end turns: special ones, and those that were added to the vocabulary."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | frozenset(i for i, token in added.items() if token.special)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The hash of what decides which tokens a text becomes: vocabulary, merges, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)
        state.pop("padding", None)
        core = json.dumps(state, sort_keys=True)
    else:
        core = json.dumps(tokenizer.get_vocab(), sort_keys=True) + type(tokenizer).__qualname__
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    template = json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True)
    return hashlib.sha256("\x00".join((core, special, template)).encode()).hexdigest()
