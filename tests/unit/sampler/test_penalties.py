"""Penalties against a reference that counts everything anew at each step."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from farstep_sampler.penalties import Penalties, SeenTokens, penalised

VOCAB = 41


def naive(
    logits: list[float],
    prompt: list[int],
    generated: list[int],
    *,
    presence: float,
    frequency: float,
    repetition: float,
) -> list[float]:
    counts = Counter(generated)
    found = []
    for token, logit in enumerate(logits):
        if token in counts or token in prompt:
            logit = logit / repetition if logit > 0 else logit * repetition
        if token in counts:
            logit -= frequency * counts[token] + presence
        found.append(logit)
    return found


def apply(logits: torch.Tensor, seen: SeenTokens, penalties: Penalties) -> torch.Tensor:
    ids = torch.from_numpy(seen.ids)
    changed = logits.clone()
    changed[ids] = penalised(
        logits[ids],
        torch.from_numpy(seen.counts),
        presence=torch.tensor(penalties.presence),
        frequency=torch.tensor(penalties.frequency),
        repetition=torch.tensor(penalties.repetition),
    )
    return changed


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    prompt=st.lists(st.integers(0, VOCAB - 1), max_size=30),
    generated=st.lists(st.integers(0, VOCAB - 1), max_size=90),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    repetition=st.one_of(st.just(1.0), st.floats(0.1, 5)),
)
def test_counting_as_tokens_come_equals_counting_anew(
    seed: int, prompt: list[int], generated: list[int], presence: float, frequency: float, repetition: float
) -> None:
    counted = np.unique(np.array(prompt, dtype=np.int32)) if repetition != 1 else np.zeros(0, np.int32)
    penalties = Penalties(presence, frequency, repetition, counted)
    seen = SeenTokens(counted)
    logits = torch.tensor(np.random.default_rng(seed).normal(size=VOCAB) * 3, dtype=torch.float32)
    for token in generated:
        seen.add(token)
    expected = naive(logits.tolist(), prompt, generated, presence=presence, frequency=frequency, repetition=repetition)
    # fp32 against fp64; logits and their changes are up to about 200
    np.testing.assert_allclose(apply(logits, seen, penalties), expected, atol=1e-4)
    assert len(seen.ids) == len(set(seen.ids.tolist())) == len({*counted.tolist(), *generated})


def test_repetition_is_that_of_transformers() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    prompt, generated = [3, 4, 4, 9], [4, 11, 12]
    counted = np.unique(np.array(prompt, dtype=np.int32))
    seen = SeenTokens(counted)
    for token in generated:
        seen.add(token)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + generated]), logits[None].clone())[0]
    torch.testing.assert_close(apply(logits, seen, Penalties(0.0, 0.0, 1.7, counted)), expected)


@pytest.mark.parametrize(
    ("values", "changes"),
    [((0, 0, 1), False), ((0.1, 0, 1), True), ((0, -0.1, 1), True), ((0, 0, 0.9), True)],
)
def test_what_changes_nothing_says_so(values: tuple[float, float, float], changes: bool) -> None:
    assert Penalties(*values, prompt_tokens=np.zeros(0, np.int32)).change_anything == changes
