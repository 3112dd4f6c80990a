"""`LLMSynthesizer`: asks a model for new items like those that are given.

Each item is a chat of its own, with a few of the given items as examples, chosen by the seed. The answer has to be a
JSON object with the keys that an item needs; what is none is asked again, and then listed as a failure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from farstep.trainers.data.order import permutation
from farstep.trainers.errors import DataError
from farstep.trainers.synthesis.chats import ChatTask, run_chats_async
from farstep.trainers.synthesis.result import Failure, Item
from farstep.trainers.synthesis.synthesizer import Made, Synthesizer

INSTRUCTION = (
    "You write data to train an assistant with. Write one new example, different from those that you are shown, as one "
    "JSON object with the same keys and nothing around it."
)
Parse = Callable[[str], Item]


class LLMSynthesizer(Synthesizer):
    """
    Args:
        chat: a `SamplingClient`, or a function of messages that gives a text.
        instruction: the system message.
        prompt: of the examples (and the number of the item) makes the user message; None: shows them as JSON.
        num_examples: of the given items, in each chat.
        keys: what an item needs; None: the keys that all given items have, but `score`.
        parse: makes an item of an answer, or raises ValueError; None: reads the JSON object in it.
        path: JSON Lines of what is done; an interrupted run goes on from it.
        sampling: of `SamplingParams`, where `chat` is a client.
    """

    name = "llm"

    def __init__(
        self,
        chat: object,
        *,
        instruction: str = INSTRUCTION,
        prompt: Callable[[Sequence[Item], int], str] | None = None,
        num_examples: int = 3,
        keys: Sequence[str] | None = None,
        parse: Parse | None = None,
        path: str | Path | None = None,
        max_running: int = 16,
        max_attempts: int = 3,
        retry_delay_s: float = 0.5,
        **sampling: Any,
    ) -> None:
        self._chat = chat
        self._instruction = instruction
        self._prompt = prompt or _shown
        self._num_examples = num_examples
        self._keys = None if keys is None else tuple(keys)
        self._parse = parse
        self._options = {
            "path": path,
            "max_running": max_running,
            "max_attempts": max_attempts,
            "retry_delay_s": retry_delay_s,
            **sampling,
        }

    async def make(self, given: Sequence[Item], num_samples: int, *, seed: int) -> Made:
        """Items in the order of their numbers, however long each took."""
        keys = self._keys if self._keys is not None else _shared_keys(given)
        if not keys and self._parse is None:
            raise DataError("nobody knows what an item is like", field="items", hint="give items, or keys, or parse")
        parse = self._parse or (lambda text: item_of(text, keys))
        tasks = [self._task(given, index, seed) for index in range(num_samples)]
        batch = await run_chats_async(self._chat, tasks, parse=parse, **self._options)
        failures = [Failure(each.index, each.error, each.text) for each in batch.failures]
        return Made([each.value for each in batch.outcomes if each.ok], failures)

    def _task(self, given: Sequence[Item], index: int, seed: int) -> ChatTask:
        order = permutation(len(given), seed, "examples", index).tolist() if given else []
        examples = [given[place] for place in order[: self._num_examples]]
        system = [{"role": "system", "content": self._instruction}] if self._instruction else []
        messages = [*system, {"role": "user", "content": self._prompt(examples, index)}]
        return ChatTask(messages, seed=_seed_of(seed, index))


def item_of(text: str, keys: Sequence[str]) -> dict[str, Any]:
    """The first JSON object in a text, prose and code fences around it or not.

    Raises:
        ValueError: there is none, or it lacks a key, or has nothing under it.
    """
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
            break
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
    else:
        raise ValueError("there is no JSON object in the answer")
    for key in keys:
        if found.get(key) in (None, "", [], {}):
            raise ValueError(f"the object has no {key!r}")
    return dict(found)


def _shown(examples: Sequence[Item], index: int) -> str:
    shown = "\n".join(json.dumps(dict(each), ensure_ascii=False, default=str) for each in examples)
    return f"Examples:\n{shown}\n\nWrite example {index + 1}." if shown else f"Write example {index + 1}."


def _shared_keys(given: Sequence[Item]) -> tuple[str, ...]:
    if not given:
        return ()
    return tuple(key for key in given[0] if key != "score" and all(key in each for each in given))


def _seed_of(seed: int, index: int) -> int:
    """Leaves room for the seeds of further attempts."""
    return (seed * 1_000_003 + index) * 64 % (1 << 62)
