"""The two training loops, as a user would write them. Each yields a `Row` a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from farstep import AdamParams, Datum, SamplingClient, SamplingParams, TrainingClient
from farstep_demo import tasks
from farstep_model.embedded.corpus import Addition

SFT_STEPS, SFT_BATCH, SFT_LEARNING_RATE = 30, 16, 5e-3
RL_STEPS, RL_PROMPTS, RL_SAMPLES, RL_LEARNING_RATE = 32, 16, 8, 5e-3
MAX_NEW_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Row:
    """One step: what it cost and what came of it. Times in seconds, counts in tokens."""

    phase: str
    step: int
    loss: float
    reward: float | None
    policy_version: int | None
    train_tokens: int
    train_s: float
    sample_tokens: int = 0
    sample_s: float = 0.0


def supervised(trainer: TrainingClient, data: Sequence[Datum], *, num_steps: int) -> Iterator[Row]:
    """Cross-entropy on `data`, in turn."""
    for step in range(num_steps):
        batch = [data[(step * SFT_BATCH + index) % len(data)] for index in range(SFT_BATCH)]
        started = time.perf_counter()
        loss = _train(trainer, batch, "cross_entropy", SFT_LEARNING_RATE * (1 - step / num_steps))
        yield Row("sft", step + 1, loss, None, None, _num_tokens(batch), time.perf_counter() - started)


def reinforce(
    trainer: TrainingClient, tokenizer: Any, practice: Sequence[Addition], *, num_steps: int
) -> Iterator[Row]:
    """Publish, sample from what was published, reward, one policy-gradient step; and again."""
    for step in range(num_steps):
        chosen = [practice[(step * RL_PROMPTS + index) % len(practice)] for index in range(RL_PROMPTS)]
        prompts = [tasks.prompt(tokenizer, problem) for problem in chosen]

        started = time.perf_counter()
        sampler = trainer.save_weights_and_get_sampling_client()
        groups = _sample(sampler, prompts, num_samples=RL_SAMPLES, seed=step)
        sampled = time.perf_counter()

        rewards = [
            [tasks.score(tokenizer, problem, sequence) for sequence in result.sequences]
            for problem, result in zip(chosen, groups, strict=True)
        ]
        batch = [
            datum
            for prompt, result, values in zip(prompts, groups, rewards, strict=True)
            for datum in tasks.policy_data(prompt, result.sequences, values)
        ]
        learning_rate = RL_LEARNING_RATE * (1 - step / num_steps)
        loss = _train(trainer, batch, "importance_sampling", learning_rate) if batch else 0.0
        flat = [value for values in rewards for value in values]
        yield Row(
            phase="rl",
            step=step + 1,
            loss=loss,
            reward=sum(flat) / len(flat),
            policy_version=min(result.policy_version for result in groups),
            train_tokens=_num_tokens(batch),
            train_s=time.perf_counter() - sampled,
            sample_tokens=sum(len(sequence.tokens) for result in groups for sequence in result.sequences),
            sample_s=sampled - started,
        )


def heldout_loss(trainer: TrainingClient, data: Sequence[Datum]) -> float:
    """Mean cross-entropy in nats a token; leaves the run's gradients alone."""
    return trainer.forward(data, "cross_entropy").result().loss


def heldout_reward(trainer: TrainingClient, tokenizer: Any, problems: Sequence[Addition]) -> tuple[float, int]:
    """Mean reward of one answer each at temperature 1, and the policy version that gave them."""
    sampler = trainer.save_weights_and_get_sampling_client()
    prompts = [tasks.prompt(tokenizer, problem) for problem in problems]
    results = _sample(sampler, prompts, num_samples=1, seed=10_000)
    rewards = [
        tasks.score(tokenizer, problem, result.sequences[0]) for problem, result in zip(problems, results, strict=True)
    ]
    return sum(rewards) / len(rewards), min(result.policy_version for result in results)


def _sample(sampler: SamplingClient, prompts: Sequence[Any], *, num_samples: int, seed: int) -> list[Any]:
    futures = [
        sampler.sample(prompt, num_samples, SamplingParams(max_tokens=MAX_NEW_TOKENS, seed=seed * 1000 + index))
        for index, prompt in enumerate(prompts)
    ]
    return [future.result() for future in futures]


def _train(trainer: TrainingClient, batch: Sequence[Datum], loss_fn: str, learning_rate: float) -> float:
    """One step; both operations are under way before the first is waited for."""
    gradients = trainer.forward_backward(batch, loss_fn)
    update = trainer.optim_step(AdamParams(learning_rate=learning_rate))
    loss = gradients.result().loss
    update.result()
    return loss


def _num_tokens(batch: Sequence[Datum]) -> int:
    return sum(datum.model_input.length for datum in batch)
