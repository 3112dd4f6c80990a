"""What the model says to a few prompts, at an evaluation: to be looked at, and scored where there is a reward function.

The prompts are the beginnings of rows, up to the first token that is trained.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from farstep.trainers.rows import Rows
from farstep.trainers.sequence import TrainSequence
from farstep.types import SamplingParams

if TYPE_CHECKING:
    from farstep.sampling import SamplingClient
    from farstep.trainers.loop import Loop


@dataclass(frozen=True, slots=True)
class Completion:
    """Of one prompt; `answer` is what the row had there."""

    prompt: str
    completion: str
    answer: str
    tokens: list[int]
    logprobs: list[float]
    stop_reason: str
    policy_version: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def shown(self) -> dict[str, str]:
        return {"prompt": self.prompt, "completion": self.completion, "answer": self.answer}


def sampling_params(trainer: Loop, **changes: Any) -> SamplingParams:
    """As the configuration says, with `changes`."""
    wanted = trainer.config.sampling
    values: dict[str, Any] = {
        "max_tokens": wanted.max_tokens,
        "temperature": 0.0 if wanted.greedy else wanted.temperature,
        "top_p": wanted.top_p,
        "top_k": wanted.top_k,
        "min_p": wanted.min_p,
        "seed": wanted.seed if wanted.seed is not None else trainer.config.seed,
        "stop": list(wanted.stop) or None,
        "ignore_eos": wanted.ignore_eos,
    }
    return SamplingParams(**(values | changes))


def prompt_of(row: TrainSequence) -> list[int]:
    """Its tokens before the first that is trained; empty where that is at once."""
    first = next((index for index, weight in enumerate(row.loss_mask) if weight and index), len(row))
    return row.tokens[:first]


def answer_of(row: TrainSequence) -> list[int]:
    """What the row has where the model is asked: up to what is given again, in a conversation of several turns."""
    first = len(prompt_of(row))
    end = next((index for index in range(first + 1, len(row)) if not row.loss_mask[index]), len(row))
    return row.tokens[first:end]


def sample_completions(trainer: Loop, rows: Rows) -> list[Completion]:
    """As many as `sample_log_count` says, or one for each row where there is somebody to score them."""
    wanted = len(rows) if trainer.has_scorer else trainer.config.sample_log_count
    if not wanted:
        return []
    chosen: list[TrainSequence] = []
    for batch in rows.batches(0):
        chosen += [row for row in batch[:: trainer.rows_per_group] if prompt_of(row)]
        if len(chosen) >= wanted:
            break
    return complete(trainer, trainer.sampling_client(), chosen[:wanted])


def complete(trainer: Loop, sampler: SamplingClient, rows: list[TrainSequence]) -> list[Completion]:
    """One completion of each row's prompt, all under way at once."""
    tokenizer, params = trainer.get_tokenizer(), sampling_params(trainer)
    prompts = [prompt_of(row) for row in rows]
    futures = [sampler.sample(prompt, 1, params) for prompt in prompts]
    found = []
    for row, prompt, future in zip(rows, prompts, futures, strict=True):
        result = future.result()
        sequence = result.sequences[0]
        found.append(
            Completion(
                prompt=tokenizer.decode(prompt),
                completion=tokenizer.decode(sequence.tokens, skip_special_tokens=True),
                answer=tokenizer.decode(answer_of(row), skip_special_tokens=True),
                tokens=sequence.tokens,
                logprobs=sequence.logprobs,
                stop_reason=sequence.stop_reason,
                policy_version=result.policy_version,
                metadata=row.metadata,
            )
        )
    return found


def scored(trainer: Loop, completions: list[Completion]) -> dict[str, float]:
    """`accuracy`, the mean of what the reward function says; nothing without one."""
    if not trainer.has_scorer:
        return {}
    function = trainer.reward_fn
    names = list(inspect.signature(function).parameters)
    rewards = []
    for each in completions:
        known = {"prompt": each.prompt, "completion": each.completion, "answer": each.answer}
        by_name = len(names) > 1 or (names and names[0] in known)
        value = function(**{name: known[name] for name in names}) if by_name else function(each)
        rewards.append(float(value))
    return {"accuracy": sum(rewards) / len(rewards)}
