"""Advantages: how much better a sample, or a token, was than what was to be expected. Pure functions of numbers.

Shapes: G samples of a prompt, T tokens of a row, N tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Scale = Literal["std", "mean", "batch", "none"]
Floats = npt.NDArray[np.float64]

EPS = 1e-8


def group_advantages(rewards_G: Sequence[float], *, scale: Scale = "std", batch_std: float = 1.0) -> list[float]:
    """[G]: each reward beside the mean of its group.

    Args:
        scale: "std": (r − mean) / (population std + 1e-8), as in GRPO (DeepSeekMath, arXiv:2402.03300, eq. 2, but for
            the 1e-8); "mean": r − mean (Dr. GRPO, arXiv:2503.20783); "batch": r − mean, over `batch_std`
            (REINFORCE++, arXiv:2501.03262); "none": r.

    Rewards that are all the same have advantages of exactly 0, except with "none".
    """
    rewards = np.asarray(rewards_G, np.float64)
    if scale == "none" or not len(rewards):
        return list(map(float, rewards))
    if rewards.max() == rewards.min():  # the mean of equal numbers is not always equal to them
        return [0.0] * len(rewards)
    centred = rewards - rewards.mean()
    match scale:
        case "std":
            centred /= rewards.std() + EPS
        case "batch":
            centred /= batch_std + EPS
    return list(map(float, centred))


def gae(
    rewards_T: Sequence[float],
    values_T: Sequence[float],
    mask_T: Sequence[float],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[list[float], list[float]]:
    """Advantages and returns [T] of chosen tokens by generalised advantage estimation (arXiv:1506.02438, eq. 16).

    Tokens with a mask of 0 were given (prompts, what tools said): the episode goes from one chosen token to the next
    as if they were not there, and theirs are 0. After the last one nothing more is to come.

        δ_t = r_t + γ·V_{t'} − V_t,   A_t = δ_t + γλ·A_{t'},   R_t = A_t + V_t      t' the next chosen token

    Args:
        rewards_T: for choosing token t.
        values_T: what was expected before token t was chosen.
    """
    advantages, returns = [0.0] * len(mask_T), [0.0] * len(mask_T)
    next_advantage = next_value = 0.0
    for index in range(len(mask_T) - 1, 0, -1):  # token 0 is chosen by nobody
        if not mask_T[index]:
            continue
        value = float(values_T[index])
        delta = float(rewards_T[index]) + gamma * next_value - value
        next_advantage = delta + gamma * lam * next_advantage
        next_value = value
        advantages[index], returns[index] = next_advantage, next_advantage + value
    return advantages, returns


def rewards_at_end(reward: float, mask_T: Sequence[float]) -> list[float]:
    """[T], the whole reward on the last chosen token."""
    rewards = [0.0] * len(mask_T)
    last = max((index for index, weight in enumerate(mask_T) if weight and index), default=None)
    if last is not None:
        rewards[last] = reward
    return rewards


def whitened(
    advantages: Sequence[Sequence[float]], masks: Sequence[Sequence[float]], *, scale: Scale = "std"
) -> list[list[float]]:
    """Advantages of rows, centred on their mean over all chosen tokens and, but for "mean", divided by their std there.

    "none" leaves them as they are. What is not chosen stays 0.
    """
    arrays = [np.asarray(row, np.float64) for row in advantages]
    chosen = [_chosen(mask) for mask in masks]
    every_N: Floats = np.concatenate([row[mask] for row, mask in zip(arrays, chosen, strict=True)] or [np.empty(0)])
    if scale == "none" or not every_N.size:
        return [row.tolist() for row in arrays]
    mean = every_N.mean()
    divisor = 1.0 if scale == "mean" else every_N.std() + EPS
    return [np.where(mask, (row - mean) / divisor, 0.0).tolist() for row, mask in zip(arrays, chosen, strict=True)]


def _chosen(mask_T: Sequence[float]) -> npt.NDArray[np.bool_]:
    chosen: npt.NDArray[np.bool_] = np.asarray(mask_T) != 0
    chosen[:1] = False
    return chosen
