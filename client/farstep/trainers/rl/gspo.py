"""Group sequence policy optimisation: GRPO whose ratios are of whole sequences (arXiv:2507.18071, the token form)."""

from __future__ import annotations

from farstep.trainers.rl.grpo import GRPOTrainer


class GSPOTrainer(GRPOTrainer):
    """Its bounds are much closer to 1 than GRPO's, because a sequence's ratio is a mean."""

    name = "gspo"
    level = "sequence"
