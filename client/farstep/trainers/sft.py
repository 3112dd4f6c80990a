"""Supervised fine-tuning: the mean cross-entropy of the tokens that are to be learnt."""

from __future__ import annotations

from farstep.trainers.trainer import Trainer


class SFTTrainer(Trainer):
    """Rows: `messages`, or a prompt and its response."""

    name = "sft"
