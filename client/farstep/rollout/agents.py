"""What an agent is given and what it may give back.

    async def run_agent(ctx, batch):
        client = AsyncOpenAI(base_url=ctx.base_url, api_key=ctx.api_key)
        answer = await client.chat.completions.create(model=ctx.model, messages=...)
        return 1.0 if good(answer) else 0.0

It may be a function, an async function or a generator of either kind. For each sample of its batch it gives nothing
(the proxy has seen the turns), a number (the reward), turns, or a trajectory.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from farstep.rollout.turns import Message, Turn, turns_of
from farstep.trainers.errors import RolloutError


@dataclass(frozen=True, slots=True)
class AgentItem:
    """One sample of one prompt.

    Args:
        base_url: where its turns are seen; empty without a proxy.
        answer: what is right, where it is not looked for in the record.
    """

    record: Mapping[str, Any]
    prompt: Any
    input_tokens: Sequence[int] | None
    prompt_index: int
    sample_index: int
    base_url: str = ""
    answer: Any = None

    @property
    def place(self) -> tuple[int, int]:
        return self.prompt_index, self.sample_index


@dataclass(frozen=True, slots=True)
class AgentBatch:
    """Prompts with their records, each to be sampled `n_samples` times.

    Args:
        records: [B], whatever is known of each prompt; what a reward looks at.
        prompts: [B], text, messages, or whatever the agent takes.
        input_tokens: [B] of token ids, where they are known.
        answers: [B], what is right, where no record says it.
        items: those of a part of a batch; None: all of them.
    """

    records: Sequence[Mapping[str, Any]]
    prompts: Sequence[Any]
    input_tokens: Sequence[Sequence[int]] | None = None
    n_samples: int = 1
    answers: Sequence[Any] | None = None
    items: Sequence[AgentItem] | None = None

    def __post_init__(self) -> None:
        if len(self.records) != len(self.prompts):
            raise RolloutError(f"{len(self.records)} records for {len(self.prompts)} prompts", field="records")
        if self.input_tokens is not None and len(self.input_tokens) != len(self.prompts):
            raise RolloutError(f"{len(self.input_tokens)} rows for {len(self.prompts)} prompts", field="input_tokens")
        if not isinstance(self.n_samples, int) or self.n_samples < 1:
            raise RolloutError(f"{self.n_samples!r} is not a number of at least 1", field="n_samples")

    @classmethod
    def from_records(
        cls, records: Iterable[Mapping[str, Any]], *, n_samples: int = 1, prompt_key: str = "prompt"
    ) -> AgentBatch:
        """A batch of records that hold their prompts."""
        rows = list(records)
        for index, record in enumerate(rows):
            if prompt_key not in record:
                raise RolloutError(
                    f"has no {prompt_key!r}, it has {', '.join(map(repr, record)) or 'nothing'}",
                    field=f"records[{index}]",
                )
        return cls(rows, [record[prompt_key] for record in rows], n_samples=n_samples)

    @classmethod
    def from_prompt_batch(cls, batch: Any, *, n_samples: int = 1) -> AgentBatch:
        """A batch of a loader's: `items` have `record`, `prompt` and, where there are any, `tokens`, `solutions`."""
        items = list(batch.items)
        tokens = [getattr(item, "input_tokens", None) or getattr(item, "tokens", None) for item in items]
        known = [each for each in tokens if each is not None]
        return cls(
            [item.record for item in items],
            [item.prompt for item in items],
            known if len(known) == len(items) else None,
            n_samples,
            [getattr(item, "solutions", None) for item in items],
        )

    def __len__(self) -> int:
        """How many samples are asked for."""
        return len(self.items) if self.items is not None else len(self.prompts) * self.n_samples

    def iter_samples(self) -> Iterator[AgentItem]:
        """An item for each sample, those of a prompt one after the other."""
        if self.items is not None:
            yield from self.items
            return
        for prompt_index, (record, prompt) in enumerate(zip(self.records, self.prompts, strict=True)):
            tokens = None if self.input_tokens is None else self.input_tokens[prompt_index]
            answer = None if self.answers is None else self.answers[prompt_index]
            for sample_index in range(self.n_samples):
                yield AgentItem(record, prompt, tokens, prompt_index, sample_index, answer=answer)

    @property
    def item(self) -> AgentItem:
        """The only one, of a batch of one sample."""
        items = list(self.iter_samples())
        if len(items) != 1:
            raise RolloutError(f"this batch has {len(items)} samples, not one", hint="use iter_samples()")
        return items[0]

    def part(self, items: Sequence[AgentItem]) -> AgentBatch:
        return AgentBatch(
            [item.record for item in items],
            [item.prompt for item in items],
            items=tuple(items),
        )


@dataclass(frozen=True, slots=True)
class AgentTrajectoryTurn:
    """One request and its answer, as the client library gave it, for agents that keep turns themselves.

    Args:
        item: whose turn it is; may be left out where the agent was given a single sample.
        response: a chat completion that came through the proxy, as an object or a dict.
        choice: which of its choices.
    """

    item: AgentItem | None
    messages: Sequence[Message]
    response: Any
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: Any = None
    choice: int = 0

    def turn(self) -> Turn | None:
        """None for an answer without a token, as there was no room for one."""
        answer = self.response if isinstance(self.response, Mapping) else self.response.model_dump()
        choices = answer.get("choices") or []
        if not 0 <= self.choice < len(choices):
            raise RolloutError(f"the answer has {len(choices)} choices", field="choice")
        if choices[self.choice].get("token_ids") == []:
            return None
        return turns_of(answer, self.messages, self.tools)[self.choice]


@dataclass(frozen=True, slots=True)
class AgentTrajectory:
    """The turns of one sample, and its reward where the agent knows it.

    Args:
        turns: empty: those that the proxy has seen.
        dropped: a reason for which this sample is left out; it is counted as filtered.
    """

    turns: Sequence[AgentTrajectoryTurn] = ()
    reward: float | None = None
    item: AgentItem | None = None
    dropped: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def normalised(results: Sequence[Any], batch: AgentBatch) -> dict[tuple[int, int], AgentTrajectory]:
    """A trajectory for each sample of a batch, from what an agent gave for it.

    Args:
        results: nothing, or a number, turn or trajectory for each sample; turns may be several of one sample.

    Raises:
        RolloutError: there are more or fewer than samples; the message has both numbers.
    """
    items = list(batch.iter_samples())
    given = [each for result in results for each in _flat(result)]
    if not given or all(each is None for each in given):
        if given and len(given) != len(items) and len(given) != 1:
            raise _wrong_count(len(given), len(items))
        return {item.place: AgentTrajectory(item=item) for item in items}
    if all(isinstance(each, AgentTrajectoryTurn) for each in given):
        return _of_turns(given, items)
    if len(given) != len(items):
        raise _wrong_count(len(given), len(items))
    found: dict[tuple[int, int], AgentTrajectory] = {}
    for item, each in zip(items, given, strict=True):
        trajectory = _trajectory(each, item)
        place = trajectory.item.place if trajectory.item is not None else item.place
        if place in found:
            raise RolloutError(f"two trajectories for prompt {place[0]}, sample {place[1]}", field="run_agent")
        found[place] = trajectory
    return found


def _flat(result: Any) -> Iterator[Any]:
    if isinstance(result, list | tuple):
        for each in result:
            yield from _flat(each)
    else:
        yield result


def _of_turns(
    turns: Sequence[AgentTrajectoryTurn], items: Sequence[AgentItem]
) -> dict[tuple[int, int], AgentTrajectory]:
    found: dict[tuple[int, int], list[AgentTrajectoryTurn]] = {}
    for turn in turns:
        if turn.item is None and len(items) > 1:
            raise RolloutError("a turn does not say whose it is", field="item", hint="item=… of batch.iter_samples()")
        place = (turn.item or items[0]).place
        found.setdefault(place, []).append(turn)
    if set(found) != {item.place for item in items}:
        raise _wrong_count(len(found), len(items))
    return {item.place: AgentTrajectory(tuple(found[item.place]), item=item) for item in items}


def _trajectory(given: Any, item: AgentItem) -> AgentTrajectory:
    match given:
        case AgentTrajectory():
            return given
        case AgentTrajectoryTurn():
            return AgentTrajectory((given,), item=given.item or item)
        case None:
            return AgentTrajectory(item=item)
        case numbers.Real():
            return AgentTrajectory(reward=float(given), item=item)
    if callable(number := getattr(given, "__float__", None)):
        return AgentTrajectory(reward=float(number()), item=item)
    raise RolloutError(
        f"gave a {type(given).__name__} for prompt {item.prompt_index}, sample {item.sample_index}",
        field="run_agent",
        hint="nothing, a number, an AgentTrajectoryTurn or an AgentTrajectory",
    )


def _wrong_count(given: int, wanted: int) -> RolloutError:
    return RolloutError(f"gave {given} trajectories for {wanted} samples", field="run_agent")
