"""Sampling against naive references, one row at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep_sampler.sampling import Draws, RowSettings, choose, sample, truncate

VOCAB = 23


def settings_of(rows: list[dict[str, float]]) -> RowSettings:
    def column(key: str, default: float) -> torch.Tensor:
        return torch.tensor([row.get(key, default) for row in rows], dtype=torch.float64)

    truncated = [i for i, row in enumerate(rows) if row.keys() & {"top_k", "top_p", "min_p"}]
    return RowSettings(
        temperature=column("temperature", 1.0).float(),
        top_k=column("top_k", VOCAB).long(),
        top_p=column("top_p", 1.0),
        min_p=column("min_p", 0.0),
        truncated=torch.tensor(truncated, dtype=torch.long),
    )


def naive_kept(weights: list[float], *, top_k: int, top_p: float, min_p: float) -> set[int]:
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:top_k]
    total, before, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if not kept or ((before < top_p * total or top_p == 1) and weights[i] >= min_p * weights[order[0]]):
            kept.append(i)
        before += weights[i]
    return set(kept)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    top_k=st.integers(1, VOCAB),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
)
def test_truncation_keeps_what_a_naive_reference_keeps(seed: int, top_k: int, top_p: float, min_p: float) -> None:
    weights = torch.tensor(np.random.default_rng(seed).dirichlet(np.full(VOCAB, 0.3)))
    one = torch.ones(1, dtype=torch.float64)
    kept = truncate(weights[None], (one * top_k).long(), one * top_p, one * min_p)[0]
    expected = naive_kept(weights.tolist(), top_k=top_k, top_p=top_p, min_p=min_p)
    assert {i for i in range(VOCAB) if kept[i] > 0} == {i for i in expected if weights[i] > 0}
    assert torch.equal(kept[kept > 0], weights[kept > 0])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    spread=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    digits=st.sampled_from([1, 9]),
    top_k=st.sampled_from([1, 7, 255, 256, 257, 4000, 4999, 5000, 1 << 31]),
    top_p=st.sampled_from([1e-9, 0.10037, 0.50013, 0.90017, 0.99903, 1.0]),  # of no number of equal weights
    min_p=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_a_large_vocabulary_is_cut_as_a_sort_would(
    seed: int, spread: float, digits: int, top_k: int, top_p: float, min_p: float
) -> None:
    """Flat and steep distributions, with many equal weights, around the numbers of ranks that are looked at."""
    logits = np.random.default_rng(seed).normal(size=5000).round(digits) * spread
    weights = torch.softmax(torch.tensor(logits), -1)
    one = torch.ones(2, dtype=torch.float64)
    limits = ((one * top_k).long(), one * top_p, one * min_p)
    kept = truncate(torch.stack([weights, weights.flip(0)]), *limits)
    for row, expected in zip(kept, (weights, weights.flip(0)), strict=True):
        assert set(row.nonzero()[:, 0].tolist()) == naive_kept(expected.tolist(), top_k=top_k, top_p=top_p, min_p=min_p)


def test_equal_weights_are_cut_by_id() -> None:
    one = torch.ones(1, dtype=torch.float64)
    kept = truncate(torch.full((1, 6), 0.5, dtype=torch.float64), one.long() * 3, one, one * 0)
    assert kept.tolist() == [[0.5, 0.5, 0.5, 0, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), uniform=st.floats(0.0, 1.0, exclude_max=True))
def test_choice_is_the_inverse_of_the_distribution(seed: int, uniform: float) -> None:
    weights = np.random.default_rng(seed).dirichlet(np.full(VOCAB, 0.5))
    weights[:3] = 0.0
    weights[-2:] = 0.0
    token = int(choose(torch.tensor(weights)[None], torch.tensor([uniform], dtype=torch.float64))[0])
    sums = np.cumsum(weights)
    assert weights[token] > 0
    assert sums[token] - weights[token] <= uniform * sums[-1] * (1 + 1e-12) + 1e-15
    assert sums[token] >= uniform * sums[-1] * (1 - 1e-12)


def test_the_largest_uniform_number_still_chooses_a_possible_token() -> None:
    weights = torch.tensor([[0.0, 0.1, 0.2, 0.0]], dtype=torch.float64)
    assert choose(weights, torch.tensor([1 - 2.0**-53], dtype=torch.float64)).tolist() == [2]
    assert choose(weights, torch.tensor([0.0], dtype=torch.float64)).tolist() == [1]


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    num = 20_000
    uniforms = torch.tensor([Draws(3, i).next() for i in range(num)], dtype=torch.float64)
    rows = RowSettings(
        temperature=torch.full((num,), 0.7),
        top_k=torch.full((num,), 4),
        top_p=torch.ones(num, dtype=torch.float64),
        min_p=torch.zeros(num, dtype=torch.float64),
        truncated=torch.zeros(0, dtype=torch.long),
    )
    sampled = sample(logits.expand(num, 4), rows, uniforms)
    expected = torch.softmax(logits / 0.7, -1)
    found = torch.bincount(sampled.tokens, minlength=4) / num
    assert (found - expected).abs().max() < 0.02


def test_log_probabilities_are_of_the_whole_vocabulary_after_temperature() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    rows = settings_of([{"temperature": 0.5, "top_p": 0.3}, {"temperature": 2.0}, {"temperature": 0.0}])
    sampled = sample(logits, rows, torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64), topk=4)
    for row, temperature in enumerate((0.5, 2.0, 1.0)):
        expected = torch.log_softmax(logits[row] / temperature, -1)
        torch.testing.assert_close(sampled.logprobs[row], expected[sampled.tokens[row]])
        assert sampled.topk_ids[row].tolist() == expected.argsort(descending=True)[:4].tolist()
        torch.testing.assert_close(sampled.topk_logprobs[row], expected.sort(descending=True).values[:4])
    assert sampled.tokens[2] == logits[2].argmax()


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = torch.randn(16, VOCAB, generator=torch.Generator().manual_seed(1))
    rows = [{"temperature": 0.2 * i, "top_k": 1 + i} if i % 3 else {"top_p": 0.1 + i / 20} for i in range(16)]
    uniforms = torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    together = sample(logits, settings_of(rows), uniforms)
    for i in range(16):
        alone = sample(logits[i : i + 1], settings_of(rows[i : i + 1]), uniforms[i : i + 1])
        assert alone.tokens[0] == together.tokens[i]
        assert alone.logprobs[0] == together.logprobs[i]


def test_a_row_with_nan_says_so_and_leaves_the_others_alone() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, 3] = math.nan
    sampled = sample(logits, settings_of([{}, {}]), torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert math.isnan(sampled.logprobs[0])
    assert sampled.logprobs[1].item() == pytest.approx(-math.log(VOCAB))
    assert 0 <= sampled.tokens[0] < VOCAB


def test_draws_are_a_function_of_seed_sample_and_position() -> None:
    first, again = Draws(7, 2), Draws(7, 2)
    values = [first.next() for _ in range(200)]
    assert values == [again.next() for _ in range(200)]
    assert all(0 <= value < 1 for value in values)
    assert len({*values, *(Draws(7, i).next() for i in range(3, 50)), Draws(8, 2).next()}) == 200 + 47 + 1
    assert Draws(-1, 0).next() != Draws(1, 0).next()


def test_draws_are_the_same_in_every_release() -> None:
    draws = Draws(42, 1)
    assert [round(draws.next(), 12) for _ in range(3)] == [0.443746921343, 0.816392095101, 0.509026186207]
