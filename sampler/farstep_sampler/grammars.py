"""Constraints compiled into grammars, and the matchers that walk them: what a sequence may say next.

llguidance does the work; here it is kept off the threads that must not wait, within bounds, and remembered. A grammar
is compiled once for all requests that give the same text, and its first mask is computed then, so that what cannot
work is refused before anything runs. Each sequence has a matcher of its own; its next mask is computed beside the
model's forward pass.

Shapes: W words of 32 bits, token t at bit t % 32 of word t // 32.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import llguidance
import llguidance.hf
import numpy as np
import numpy.typing as npt
from llguidance.gbnf_to_lark import any_to_lark
from transformers import PreTrainedTokenizerBase

from farstep_proto.errors import InvalidInput
from farstep_sampler.constraint import Constraint
from farstep_sampler.repetition import MAX_REPEATED, LarkRepetitions

Mask = npt.NDArray[np.int32]

MAX_GRAMMARS = 64
_MAX_MESSAGE_CHARS = 300
# A library's thread that is this late has broken its own limits.
_MASK_TIMEOUT_S = 10.0
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_items_in_row=2_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)


class Grammar:
    """A compiled constraint of one tokenizer; any number of matchers may start from it, on any thread."""

    def __init__(
        self, constraint: Constraint, start: llguidance.LLMatcher, *, num_words: int, pool: ThreadPoolExecutor
    ):
        self.constraint = constraint
        self.is_spent = False  # its automaton, which its matchers share, has grown to its limit
        self._start = start
        self._num_words = num_words
        self._pool = pool

    def matcher(self) -> Matcher:
        return Matcher(self, self._start, num_words=self._num_words, pool=self._pool)


class Matcher:
    """What one sequence may say next. For one thread; the work is done on others."""

    def __init__(
        self, grammar: Grammar, start: llguidance.LLMatcher, *, num_words: int, pool: ThreadPoolExecutor
    ) -> None:
        self._grammar = grammar
        self._pool = pool
        self._num_words = num_words
        self._matcher = start.deep_copy()
        self._next: Future[Mask] = pool.submit(self._filled)

    def push(self, token: int) -> None:
        """Takes the next token; the mask after it is begun at once."""
        wait([self._next], _MASK_TIMEOUT_S)
        self._next = self._pool.submit(self._advance, token)

    def mask(self) -> Mask:
        """Which tokens may come next: [W], at least one.

        Raises:
            InvalidInput: the grammar leads into more than the limits allow.
        """
        return self._next.result(_MASK_TIMEOUT_S)

    def _advance(self, token: int) -> Mask:
        self._matcher.consume_token(token)
        return self._filled()

    def _filled(self) -> Mask:
        mask_W = np.zeros(self._num_words, dtype=np.int32)
        self._matcher.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
        if self._matcher.is_error():
            self._grammar.is_spent = True
            raise _refusal(self._grammar.constraint, self._matcher.get_error())
        return mask_W


class Grammars:
    """The grammars of one model; `compiled` is for one event loop.

    Args:
        tokenizer: of the model; only "fast" ones can be guided.
        vocab_size: how many logits there are.
        eos_token_ids: what a matching text ends with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._hf_tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._vocab_size = max(vocab_size, len(tokenizer))
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[tuple[str, Constraint], Future[Grammar]] = OrderedDict()
        self._compilers = ThreadPoolExecutor(2, thread_name_prefix="grammar-compile")
        self._fillers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="grammar-mask")

    async def compiled(self, constraint: Constraint, *, asker: str = "") -> Grammar:
        """The grammar of a constraint, compiled on another thread unless it is known from the same asker.

        Raises:
            InvalidInput: the library refuses it, or nothing that the model can write matches it.
        """
        key = asker, constraint
        found = self._compiled.get(key)
        if found is None or _is_useless(found):
            found = self._compiled[key] = self._compilers.submit(self._compile, constraint)
        self._compiled.move_to_end(key)
        while len(self._compiled) > MAX_GRAMMARS:
            self._compiled.popitem(last=False)
        return await asyncio.shield(asyncio.wrap_future(found))

    def _compile(self, constraint: Constraint) -> Grammar:
        tokenizer = self._llguidance_tokenizer(constraint)
        try:
            source = _SOURCES[constraint.kind](constraint.text)
        except (ValueError, RecursionError) as error:
            raise _refusal(constraint, str(error)) from error
        matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refusal(constraint, matcher.get_error())
        return Grammar(constraint, matcher, num_words=-(-self._vocab_size // 32), pool=self._fillers)

    def _llguidance_tokenizer(self, constraint: Constraint) -> llguidance.LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                if not self._eos_token_ids:
                    raise InvalidInput("the model has no end token for a match to end with", field=constraint.field)
                try:
                    self._tokenizer = llguidance.hf.from_tokenizer(
                        self._hf_tokenizer, n_vocab=self._vocab_size, eos_token=list(self._eos_token_ids)
                    )
                except ValueError as error:
                    message = f"{type(self._hf_tokenizer).__name__} cannot be guided: {error}"
                    raise InvalidInput(message, field=constraint.field) from error
            return self._tokenizer


def _grammar(text: str) -> str:
    try:
        lark = any_to_lark(text)
    except Exception as error:  # the converter raises this very class
        raise ValueError(f"is no GBNF: {error}") from error
    if (repeated := LarkRepetitions(lark).most()) > MAX_REPEATED:
        raise ValueError(f"its nested repetitions stand for {repeated} times, at most {MAX_REPEATED}: use * or +")
    return llguidance.LLMatcher.grammar_from_lark(lark)


def _choice(text: str) -> str:
    """One terminal: the lexer, unlike the parser, has no trouble with thousands of them."""
    choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(text))
    return llguidance.LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}")


_SOURCES: dict[str, Callable[[str], str]] = {
    "json_schema": llguidance.LLMatcher.grammar_from_json_schema,
    "regex": llguidance.LLMatcher.grammar_from_regex,
    "grammar": _grammar,
    "choice": _choice,
}


def _is_useless(found: Future[Grammar]) -> bool:
    return found.done() and (found.exception() is not None or found.result().is_spent)


def _refusal(constraint: Constraint, message: str) -> InvalidInput:
    if message.startswith("NoExtension"):
        return InvalidInput("nothing that the model can write matches it", field=constraint.field)
    lines = [line for line in message.splitlines() if line.strip() and "non-verbose" not in line]
    return InvalidInput(" ".join(lines)[:_MAX_MESSAGE_CHARS], field=constraint.field)
