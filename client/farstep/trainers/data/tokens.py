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

import numpy as np

from farstep.trainers.data.chat import Rendered, Span
from farstep.trainers.data.order import Indices
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
class _Placed:
    """Tokens and the characters that each stands for: ids, starts and ends, [T] each."""

    ids: Indices
    starts: Indices
    ends: Indices

    def crosses(self, edges: Sequence[int]) -> bool:
        """Whether a token reaches over one of the edges."""
        at = np.asarray(edges, np.int64)
        return bool(np.any(np.searchsorted(at, self.ends, "left") > np.searchsorted(at, self.starts, "right")))

    def inside(self, span: Span) -> Indices:
        """Numbers of the tokens that are wholly in the span."""
        return np.flatnonzero((self.starts >= span[0]) & (self.ends <= span[1]))


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
    placed = _placed(tokenizer, rendered.text, 0)
    crossed = placed is None or placed.crosses(edges)
    if placed is None or crossed:
        placed = _cut(tokenizer, rendered.text, edges)
    weights_T = np.zeros(len(placed.ids))
    special = _special_ids(tokenizer)
    for span in rendered.spans:
        inside = placed.inside(span)
        weights_T[inside] = 1.0
        weights_T[_tail(tokenizer, placed.ids, inside, special)] = 0.0
    return Masked(placed.ids.tolist(), weights_T.tolist(), crossed)


def _placed(tokenizer: PreTrainedTokenizerBase, text: str, base: int) -> _Placed | None:
    """The text's tokens where they are; None for a tokenizer that cannot say.

    A tokenizer may leave spaces out of a token's place: what lies between two tokens belongs to the second.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    found: Any = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    offsets = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)
    starts, ends = offsets[:, 0], offsets[:, 1]
    reached = np.maximum.accumulate(np.concatenate([[0], ends]))
    for gap in [*np.flatnonzero(starts > reached[:-1]).tolist(), len(starts)]:
        left_out = text[reached[gap] : starts[gap] if gap < len(starts) else None]
        if left_out.strip() or (left_out and not len(starts)):
            raise DataError(f"the tokenizer has no token for {left_out[:40]!r}, character {base + reached[gap]}")
    ids = np.asarray(found["input_ids"], np.int64)
    return _Placed(ids, base + np.minimum(starts, reached[:-1]), base + ends)


def _cut(tokenizer: PreTrainedTokenizerBase, text: str, edges: Sequence[int]) -> _Placed:
    """Tokens of the text's parts, each tokenised alone."""
    parts = []
    for start, end in pairwise([0, *edges, len(text)]):
        placed = _placed(tokenizer, text[start:end], start)
        if placed is None:
            ids = np.asarray(token_ids(tokenizer, text[start:end]), np.int64)
            placed = _Placed(ids, np.full(len(ids), start), np.full(len(ids), end))
        parts.append(placed)
    whole = _Placed(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "starts", "ends")))
    _check_spelling(tokenizer, whole.ids.tolist(), text)
    return whole


def _check_spelling(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> None:
    """Whether the tokens spell what the whole text's own tokens spell."""
    spelt, whole = _decoded(tokenizer, ids), _decoded(tokenizer, token_ids(tokenizer, text))
    if spelt == whole:
        return
    at = next((i for i, (a, b) in enumerate(zip(spelt, whole, strict=False)) if a != b), min(len(spelt), len(whole)))
    raise DataError(
        f"the text cannot be cut into turns without changing its tokens: at character {at}, "
        f"{spelt[at : at + 40]!r} is not {whole[at : at + 40]!r}"
    )


def _tail(tokenizer: PreTrainedTokenizerBase, ids: Indices, inside: Indices, special: Indices) -> Indices:
    """Of a span's tokens those after its last special one, if they are white space: nobody samples them."""
    specials = np.flatnonzero(np.isin(ids[inside], special))
    rest = inside[specials[-1] + 1 :] if len(specials) else inside[:0]
    return rest if len(rest) and not _decoded(tokenizer, ids[rest].tolist()).strip() else rest[:0]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> Indices:
    """Ids that end turns: special ones, and those that were added to the vocabulary."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return np.asarray([*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)], np.int64)


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
