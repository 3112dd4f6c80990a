"""Many chats: so many at a time, their answers in order, none lost.

What is done is written to a JSON Lines file as soon as it is done; whoever comes again with the same chats and the
same file asks only what is missing. A chat that fails is tried again, then listed with its reason; the others go on.

Invariant: one outcome for each task, in the order of the tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farstep.trainers.chat import Chat, Message, Reply, as_chat, together, waited_for
from farstep.trainers.errors import DataError, TrainerError
from farstep.trainers.synthesis.chat_file import ChatFile

MAX_DELAY_S = 30.0


@dataclass(frozen=True, slots=True)
class ChatTask:
    """`key`: what it is known by in the file, beside its messages; None: its number."""

    messages: Sequence[Message]
    seed: int | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class ChatOutcome:
    """Of task number `index`: its answer, or why there is none. `value` is what `parse` made of the answer."""

    index: int
    key: str
    text: str = ""
    value: Any = None
    error: str = ""
    stop_reason: str = ""
    attempts: int = 0

    @property
    def ok(self) -> bool:
        return not self.error


@dataclass(frozen=True, slots=True)
class ChatBatch:
    """`outcomes` in the order of the tasks; `num_resumed` of them were in the file."""

    outcomes: list[ChatOutcome]
    num_resumed: int = 0

    @property
    def texts(self) -> list[str | None]:
        """None where there is no answer."""
        return [each.text if each.ok else None for each in self.outcomes]

    @property
    def failures(self) -> list[ChatOutcome]:
        return [each for each in self.outcomes if not each.ok]


async def run_chats_async(
    chat: object,
    tasks: Sequence[ChatTask | Sequence[Message]],
    *,
    path: str | Path | None = None,
    parse: Callable[[str], Any] | None = None,
    max_running: int = 16,
    max_attempts: int = 3,
    retry_delay_s: float = 0.5,
    on_outcome: Callable[[ChatOutcome], object] | None = None,
    **sampling: Any,
) -> ChatBatch:
    """
    Args:
        chat: a `SamplingClient`, or a function of messages that gives a text.
        tasks: messages, or `ChatTask`s.
        path: of the file; None: nothing is kept.
        parse: of an answer; what it raises makes this attempt a failure. Also tried on answers from the file.
        max_attempts: of each chat; before another there is a pause, doubled each time, from `retry_delay_s` on.
        on_outcome: called with each as it comes.
        sampling: of `SamplingParams`, where `chat` is a client.

    Raises:
        DataError: the file is of other chats, or damaged.
        TrainerError: another process writes to the file.
    """
    for name, value in (("max_running", max_running), ("max_attempts", max_attempts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"{value!r} is no number from 1 on", field=name)
    if not math.isfinite(retry_delay_s) or retry_delay_s < 0:
        raise DataError(f"{retry_delay_s!r} is no time", field="retry_delay_s")
    asked = [task if isinstance(task, ChatTask) else ChatTask(task) for task in tasks]
    keys = _keys_of(asked)
    running = _Running(as_chat(chat, **sampling), parse, max_attempts, retry_delay_s)
    room = asyncio.Semaphore(max_running)
    with ChatFile(path) as file:
        done = _resumed(file, keys, running)

        async def work(index: int) -> ChatOutcome:
            if index in done:
                return done[index]
            async with room:
                outcome = await running.ask(index, keys[index], asked[index])
            file.add(outcome_to_dict(outcome))
            if on_outcome is not None:
                on_outcome(outcome)
            return outcome

        outcomes = await together(work(index) for index in range(len(asked)))
    return ChatBatch(outcomes, len(done))


run_chats = waited_for(run_chats_async)


class _Running:
    def __init__(self, chat: Chat, parse: Callable[[str], Any] | None, max_attempts: int, retry_delay_s: float) -> None:
        self._chat = chat
        self._parse = parse
        self._max_attempts = max_attempts
        self._retry_delay_s = retry_delay_s

    async def ask(self, index: int, key: str, task: ChatTask) -> ChatOutcome:
        error, text = "", ""
        spread = random.Random(index)  # so that chats that failed together do not come again together
        for attempt in range(1, self._max_attempts + 1):
            if attempt > 1:
                delay_s = min(MAX_DELAY_S, self._retry_delay_s * 2 ** (attempt - 2))
                await asyncio.sleep(delay_s * spread.uniform(0.75, 1.25))
            seed = task.seed if task.seed is None else task.seed + attempt - 1
            try:
                reply: Reply = await self._chat(task.messages, seed=seed)
                text = reply.text
                return ChatOutcome(index, key, text, self.parsed(text), "", reply.stop_reason, attempt)
            except TrainerError as refused:
                return ChatOutcome(index, key, text, None, str(refused), "", attempt)  # it would be so again
            except Exception as failed:
                error = f"{type(failed).__name__}: {failed}"
        return ChatOutcome(index, key, text, None, error, "", self._max_attempts)

    def parsed(self, text: str) -> Any:
        return text if self._parse is None else self._parse(text)


def _keys_of(tasks: Sequence[ChatTask]) -> list[str]:
    """Of each task: its own key or number, and a hash of what is asked."""
    keys = []
    for index, task in enumerate(tasks):
        if not task.messages or not all(isinstance(each, Mapping) and "role" in each for each in task.messages):
            raise DataError("no messages with roles", field=f"tasks[{index}]")
        said = json.dumps([list(map(dict, task.messages)), task.seed], sort_keys=True, default=repr)
        digest = hashlib.blake2b(said.encode(), digest_size=12).hexdigest()
        keys.append(f"{task.key if task.key is not None else index}:{digest}")
    if len(set(keys)) < len(keys):
        again = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise DataError(f"two tasks have the key {again.rpartition(':')[0]!r}", field="tasks")
    return keys


def _resumed(file: ChatFile, keys: Sequence[str], running: _Running) -> dict[int, ChatOutcome]:
    """What the file has of these tasks, answers only: what failed is asked again."""
    places = {key: index for index, key in enumerate(keys)}
    names = {key.rpartition(":")[0]: key for key in keys}
    done: dict[int, ChatOutcome] = {}
    for line in file.lines:
        key = line["key"]
        if key not in places:
            if key.rpartition(":")[0] in names:
                raise DataError(f"has another chat under {key.rpartition(':')[0]!r}", field=str(file.path),
                                hint="another file for other chats")  # fmt: skip
            continue
        if line["error"]:
            continue
        index, text = places[key], line["text"]
        with contextlib.suppress(Exception):  # the parser has changed since: it is asked again
            value = running.parsed(text)
            done[index] = ChatOutcome(index, key, text, value, "", line["stop_reason"], line["attempts"])
    return done


def outcome_to_dict(outcome: ChatOutcome) -> dict[str, Any]:
    return {
        "key": outcome.key,
        "text": outcome.text,
        "error": outcome.error,
        "stop_reason": outcome.stop_reason,
        "attempts": outcome.attempts,
    }
