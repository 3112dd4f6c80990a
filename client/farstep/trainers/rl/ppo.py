"""Proximal policy optimisation with a critic: tokens are as good as what follows is better than was expected of them.

The critic is a run of its own (`Role("critic", head="value")`) with its own rate, trained on the same rows before the
policy is. In the first `rl.critic.warmup_steps` steps it alone is trained, and the policy stays as it is, to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farstep.trainers.gradients import Batch, LossFunction
from farstep.trainers.rl.advantages import gae, rewards_at_end, whitened
from farstep.trainers.rl.trainer import RLTrainer
from farstep.trainers.role import Role
from farstep.trainers.roles import ValueLoss
from farstep.trainers.step import PendingUpdate

if TYPE_CHECKING:
    from farstep.rollout import Rollout

log = logging.getLogger("farstep")

CRITIC = "critic"


class PPOTrainer(RLTrainer):
    """Metrics: `critic/…` beside the policy's. Steps of the critic's warm-up are steps of the run."""

    name = "ppo"

    def needed_roles(self) -> list[Role]:
        wanted = self.config.rl.critic
        critic = Role(CRITIC, wanted.path, trainable=True, head="value", lr=wanted.lr)
        return [*super().needed_roles(), critic]

    def advantages(self, rollout: Rollout) -> Batch:
        """By GAE over the tokens that the policy chose, with a row's reward on the last of them; then whitened."""
        rl, rows = self.config.rl, rollout.rows
        values = self.score_values(CRITIC, rows)
        estimates = [
            gae(rewards_at_end(row.reward, row.loss_mask), row_values, row.loss_mask, gamma=rl.gamma, lam=rl.gae_lambda)
            for row, row_values in zip(rows, values, strict=True)
        ]
        white = whitened(
            [advantages for advantages, _ in estimates], [row.loss_mask for row in rows], scale=rl.normalize_advantages
        )
        return [
            row.replace(values=row_values, returns=returns, advantages=advantages)
            for row, row_values, (_, returns), advantages in zip(rows, values, estimates, white, strict=True)
        ]

    def load_data(self) -> None:
        super().load_data()
        warmup = self.config.rl.critic.warmup_steps
        if warmup >= self.training_horizon:
            log.warning(
                "%s: all %d steps are the critic's warm-up (rl.critic.warmup_steps is %d): the policy is not trained",
                self.config.name,
                self.training_horizon,
                warmup,
            )

    @property
    def is_warming_up(self) -> bool:
        """Whether the next step is the critic's alone."""
        return self._submitted < self.config.rl.critic.warmup_steps

    def _submit_named(self, group: list[Batch], loss_fn: Any) -> PendingUpdate:
        return self._after_critic(group, lambda: super(PPOTrainer, self)._submit_named(group, loss_fn))

    def _submit_open(self, group: list[Batch], loss_fn: str | LossFunction) -> PendingUpdate:
        return self._after_critic(group, lambda: super(PPOTrainer, self)._submit_open(group, loss_fn))

    def _after_critic(self, group: Sequence[Batch], submit: Callable[[], PendingUpdate]) -> PendingUpdate:
        wanted = self.config.rl.critic
        params = self.role_adam_params(self.roles.learning_rate(CRITIC, wanted.lr))
        critic = self.roles.submit_values(CRITIC, group, params, ValueLoss(wanted.clip, wanted.coef))
        if self.is_warming_up:
            self._under_way += 1
            return _WithCritic(critic.learning_rate, (), critic.update, critic.rows, critic=critic)
        actor = submit()
        return _WithCritic(actor.learning_rate, actor.passes, actor.update, actor.rows, actor.own, critic=critic)


@dataclass(frozen=True, slots=True, kw_only=True)
class _WithCritic(PendingUpdate):
    """A step of the policy, if it makes one, and the critic's before it."""

    critic: PendingUpdate

    def result(self) -> dict[str, float]:
        critic = self.critic.result()
        shown = {f"critic/{name}": value for name, value in critic.items() if not name.startswith("num_")}
        if self.update is self.critic.update:
            counts = {name: value for name, value in critic.items() if name.startswith("num_")}
            return {**counts, **shown, "learning_rate": 0.0, "grad_norm": 0.0}
        # (zero-argument super needs the class that slots=True replaces)
        return {**PendingUpdate.result(self), **shown}
