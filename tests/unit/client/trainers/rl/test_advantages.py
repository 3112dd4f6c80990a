"""Advantages against tables worked out by hand, and against plain formulas over the same numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farstep.trainers.rl.advantages import gae, group_advantages, rewards_at_end, whitened


def test_group_advantages_by_hand():
    # mean 1, population variance (1 + 1 + 4 + 4) / 4 = 2.5
    root = math.sqrt(2.5)
    expected = [-1 / root, 1 / root, -2 / root, 2 / root]
    assert group_advantages([0, 2, -1, 3]) == pytest.approx(expected, rel=1e-7)  # 1e-8 beside a std of 1.6
    assert group_advantages([0, 2, -1, 3], scale="mean") == [-1, 1, -2, 2]
    assert group_advantages([0, 2, -1, 3], scale="batch", batch_std=0.5) == pytest.approx([-2, 2, -4, 4], rel=1e-7)
    assert group_advantages([0, 2, -1, 3], scale="none") == [0, 2, -1, 3]


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1e17])
@pytest.mark.parametrize("scale", ["std", "mean", "batch"])
def test_equal_rewards_are_zeros_exactly(reward, scale):
    """0.1 three times has a mean that is not 0.1, and a std that is not 0."""
    assert group_advantages([reward] * 3, scale=scale) == [0.0, 0.0, 0.0]
    assert group_advantages([reward], scale=scale) == [0.0]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_group_advantages_are_of_mean_0_and_std_1(rewards):
    found = np.asarray(group_advantages(rewards))
    if np.std(rewards) < 1e-3:
        return  # 1e-8 counts there
    assert abs(found.mean()) < 1e-6
    assert found.std() == pytest.approx(1, abs=1e-4)


def test_gae_by_hand():
    """Three tokens after a prompt of one; γ 0.5, λ 0.5, so γλ 0.25.

    δ3 = 1 − 0.4 = 0.6                    A3 = 0.6                     R3 = 1
    δ2 = 0 + 0.5·0.4 − 0.2 = 0            A2 = 0 + 0.25·0.6 = 0.15     R2 = 0.35
    δ1 = 0 + 0.5·0.2 − 0.1 = 0            A1 = 0 + 0.25·0.15 = 0.0375  R1 = 0.1375
    """
    advantages, returns = gae([9, 0, 0, 1], [9, 0.1, 0.2, 0.4], [1, 1, 1, 1], gamma=0.5, lam=0.5)
    assert advantages == pytest.approx([0, 0.0375, 0.15, 0.6])
    assert returns == pytest.approx([0, 0.1375, 0.35, 1.0])


def test_gae_goes_from_chosen_token_to_chosen_token():
    """What a tool said between two answers is no step of the episode, whatever the critic thought there."""
    values, mask = [9, 0.1, 0.2, 7, 7, 0.4], [0, 1, 1, 0, 0, 1]
    advantages, returns = gae(rewards_at_end(1, mask), values, mask, gamma=0.5, lam=0.5)
    assert advantages == pytest.approx([0, 0.0375, 0.15, 0, 0, 0.6])
    assert returns == pytest.approx([0, 0.1375, 0.35, 0, 0, 1.0])


@given(st.data())
def test_gae_is_the_sum_that_defines_it(data):
    """Â_t = Σ_l (γλ)^l δ_{t+l}, written out forwards over the chosen tokens alone."""
    size = data.draw(st.integers(2, 9))
    numbers = st.lists(st.floats(-2, 2), min_size=size, max_size=size)
    rewards, values = data.draw(numbers), data.draw(numbers)
    mask = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=size, max_size=size))
    gamma, lam = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    steps = [index for index in range(1, size) if mask[index]]
    nexts = [values[index] for index in steps[1:]] + [0.0]
    deltas = [rewards[t] + gamma * v - values[t] for t, v in zip(steps, nexts, strict=False)]
    for place, index in enumerate(steps):
        expected = sum((gamma * lam) ** ahead * delta for ahead, delta in enumerate(deltas[place:]))
        assert advantages[index] == pytest.approx(expected, abs=1e-9)
        assert returns[index] == pytest.approx(expected + values[index], abs=1e-9)
    assert all(advantages[index] == returns[index] == 0 for index in range(size) if index not in steps)


def test_the_reward_is_on_the_last_chosen_token():
    assert rewards_at_end(2.5, [0, 1, 1, 0]) == [0, 0, 2.5, 0]
    assert rewards_at_end(2.5, [1, 0, 0]) == [0, 0, 0]  # token 0 is chosen by nobody


def test_whitening_is_over_the_chosen_tokens_of_all_rows():
    rows, masks = [[50.0, 1.0, 50.0, 3.0], [50.0, 5.0]], [[1, 1, 0, 1], [0, 0.5]]
    std = math.sqrt(8 / 3)  # of 1, 3, 5
    first, second = whitened(rows, masks)
    assert first == pytest.approx([0, -2 / std, 0, 0])
    assert second == pytest.approx([0, 2 / std])
    assert whitened(rows, masks, scale="mean") == [[0, -2, 0, 0], [0, 2]]
    assert whitened(rows, masks, scale="none") == rows
    assert whitened([], []) == []
