"""Group relative policy optimisation: an answer is as good as it is better than the others to the same prompt.

DeepSeekMath, arXiv:2402.03300. With asymmetric `clip_low` and `clip_high`, `drop_zero_variance` and a mean over tokens
(the default here) it is DAPO's (arXiv:2503.14476); with `normalize_advantages: mean` and `loss_aggregation: constant`,
Dr. GRPO's (arXiv:2503.20783). Against TRL's: tests/unit/trl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from farstep.trainers.gradients import Batch
from farstep.trainers.rl.advantages import group_advantages
from farstep.trainers.rl.trainer import RLTrainer
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from farstep.rollout import Rollout


class GRPOTrainer(RLTrainer):
    name = "grpo"

    def advantages(self, rollout: Rollout) -> Batch:
        """Every token of a sample has its sample's advantage over its group.

        A sample that failed counts with the reward that it was given, and not at all where it was given none.
        """
        scale = self.config.rl.normalize_advantages
        rewards = [reward for group in rollout.groups for reward in group.rewards]
        batch_std = float(np.std(rewards)) if rewards else 1.0
        rows: Batch = []
        for group in rollout.groups:
            scored = [sample for sample in group.samples if sample.reward is not None]
            values = group_advantages(group.rewards, scale=scale, batch_std=batch_std)
            for sample, value in zip(scored, values, strict=True):
                rows += [with_advantage(row, value) for row in sample.rows]
        return rows


def with_advantage(row: TrainSequence, advantage: float) -> TrainSequence:
    """A row all of whose trained tokens have this advantage."""
    return row.replace(advantages=[advantage if weight else 0.0 for weight in row.loss_mask])
