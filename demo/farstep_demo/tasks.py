"""The demo's data: prose that the base model has not seen, and additions to answer.

Tokens in, `Datum`s out; nothing here talks to a server.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from farstep import Datum, ModelInput, SampledSequence
from farstep_model.embedded.corpus import Addition, heldout_additions, heldout_prose, pretraining_additions, reward

MAX_PROSE_TOKENS = 256


def prose(tokenizer: Any, *, seed: int) -> tuple[list[Datum], list[Datum]]:
    """Paragraphs to tune on and paragraphs to measure with, each predicted from its beginning."""
    tune, test = ([_paragraph(tokenizer, text) for text in sorted(heldout_prose(part))] for part in ("tune", "test"))
    rng = random.Random(seed)
    rng.shuffle(tune)
    rng.shuffle(test)
    return tune, test


def _paragraph(tokenizer: Any, text: str) -> Datum:
    tokens = tokenizer.encode(text, add_special_tokens=False)[:MAX_PROSE_TOKENS]
    return Datum.from_prompt_completion(tokens[:1], tokens[1:])


def problems(*, seed: int) -> tuple[list[Addition], list[Addition]]:
    """Additions to practise on, and additions that neither the base model nor the practice has seen."""
    practice, heldout = pretraining_additions(), heldout_additions()
    rng = random.Random(seed)
    rng.shuffle(practice)
    rng.shuffle(heldout)
    return practice, heldout


def prompt(tokenizer: Any, problem: Addition) -> ModelInput:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem.question}], add_generation_prompt=True, tokenize=False
    )
    return ModelInput.from_ints(tokenizer.encode(text, add_special_tokens=False))


def score(tokenizer: Any, problem: Addition, sequence: SampledSequence) -> float:
    """1.0 where the answer ends in the right number, else 0.0."""
    return reward(problem.question, tokenizer.decode(sequence.tokens, skip_special_tokens=True))


def policy_data(prompt: ModelInput, sequences: Sequence[SampledSequence], rewards: Sequence[float]) -> list[Datum]:
    """One group of answers for `importance_sampling`, its advantages centred on the group's mean reward.

    A group whose answers are all right or all wrong teaches nothing and gives no data.
    """
    mean = sum(rewards) / len(rewards)
    if all(value == mean for value in rewards):
        return []
    return [
        Datum.from_prompt_completion(
            prompt.to_ints(), sequence.tokens, logprobs=sequence.logprobs, advantages=value - mean
        )
        for sequence, value in zip(sequences, rewards, strict=True)
    ]
