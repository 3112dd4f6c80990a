"""That tokens come as often as they should: many seeded draws against an independent reference in numpy.

Chi-square over the possible tokens, at a level of 1e-4 for each of the cases; the seeds are fixed, so that a case
that passes, passes always. Each case is also shown to fail against the distribution of another setting.
"""

import math

import numpy as np
import pytest
import torch

from farstep_sampler.logit_controls import LogitControls, SequenceControls
from farstep_sampler.penalties import Penalties
from farstep_sampler.request import NO_TOP_K, SampleJob
from farstep_sampler.sampling import Draws, RowSettings, sample

LOGITS = np.random.default_rng(5).normal(size=12) * 1.5
PROMPT, GENERATED = [0, 3, 3], [1, 4, 4, 4]
NUM_DRAWS = 20_000

CASES: list[dict[str, float]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 2.5},
    {"top_k": 4},
    {"top_p": 0.7},
    {"min_p": 0.15},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.8, "min_p": 0.1},
    {"presence": 1.2},
    {"frequency": 0.9},
    {"repetition": 1.8},
    {"bias": 1.4},
    {"temperature": 0.8, "presence": -0.5, "frequency": 0.5, "repetition": 1.3, "bias": -2.0, "top_p": 0.95},
]


def reference(case: dict[str, float]) -> np.ndarray:
    """Probabilities [V], written out from the definitions."""
    logits = LOGITS.copy()
    logits[2] += case.get("bias", 0.0)
    repetition = case.get("repetition", 1.0)
    for token in set(PROMPT + GENERATED):
        logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
    for token in set(GENERATED):
        logits[token] -= case.get("presence", 0.0) + case.get("frequency", 0.0) * GENERATED.count(token)
    weights = np.exp(logits / case.get("temperature", 1.0))
    weights /= weights.sum()
    order = np.argsort(-weights, kind="stable")[: int(case.get("top_k", len(weights)))]
    before = np.cumsum(weights[order]) - weights[order]
    order = order[before < case.get("top_p", 1.0) * weights[order].sum()]
    order = order[weights[order] >= case.get("min_p", 0.0) * weights.max()]
    kept = np.zeros_like(weights)
    kept[order] = weights[order]
    return kept / kept.sum()


def drawn(case: dict[str, float]) -> np.ndarray:
    """How often each token was chosen, [V]."""
    logits_1V = torch.tensor(LOGITS, dtype=torch.float32)[None].clone()
    repetition = case.get("repetition", 1.0)
    counted = np.unique(np.array(PROMPT if repetition != 1 else [], dtype=np.int32))
    penalties = Penalties(case.get("presence", 0.0), case.get("frequency", 0.0), repetition, counted)
    job = SampleJob(
        prompt=np.array(PROMPT, dtype=np.int32),
        num_samples=1,
        max_tokens=9,
        temperature=1.0,
        top_k=NO_TOP_K,
        top_p=1.0,
        min_p=0.0,
        seed=1,
        stop_tokens=frozenset(),
        stop_strings=(),
        wants_prompt_logprobs=False,
        num_prompt_topk=0,
        num_topk=0,
        penalties=penalties if penalties.change_anything else None,
        logit_bias=((2, case["bias"]),) if "bias" in case else (),
    )
    controls = SequenceControls.of(job)
    if controls is not None:
        for token in GENERATED:
            controls.push(token)
        batch = LogitControls.of([controls], device=torch.device("cpu"))
        assert batch is not None
        batch.apply(logits_1V)
    full = torch.ones(NUM_DRAWS, dtype=torch.float64)
    is_truncated = bool(case.keys() & {"top_k", "top_p", "min_p"})
    rows = RowSettings(
        temperature=(full * case.get("temperature", 1.0)).float(),
        top_k=(full * case.get("top_k", NO_TOP_K)).long(),
        top_p=full * case.get("top_p", 1.0),
        min_p=full * case.get("min_p", 0.0),
        truncated=torch.arange(NUM_DRAWS if is_truncated else 0),
    )
    draws = Draws(11, 3)
    uniforms = torch.tensor([draws.next() for _ in range(NUM_DRAWS)], dtype=torch.float64)
    tokens = sample(logits_1V.expand(NUM_DRAWS, -1), rows, uniforms).tokens
    return np.bincount(tokens.numpy(), minlength=len(LOGITS))


def p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Of Pearson's chi-square: the chance of at least this much difference. 0 where the impossible happened."""
    if counts[probabilities == 0].any():
        return 0.0
    expected = (probabilities * counts.sum())[probabilities > 0]
    statistic = ((counts[probabilities > 0] - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    return (
        float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(statistic / 2)))
        if freedom
        else 1.0
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: ",".join(f"{k}={v}" for k, v in case.items()) or "plain")
def test_tokens_come_as_often_as_they_should(case: dict[str, float]) -> None:
    counts = drawn(case)
    assert p_value(counts, reference(case)) > 1e-4
    other = {"temperature": 1.2} if not case else {}
    assert p_value(counts, reference(other)) < 1e-4


def test_the_test_itself() -> None:
    assert p_value(np.array([50, 50]), np.array([0.5, 0.5])) == 1.0
    assert p_value(np.array([60, 40]), np.array([0.5, 0.5])) == pytest.approx(math.erfc(2 / math.sqrt(2)))
