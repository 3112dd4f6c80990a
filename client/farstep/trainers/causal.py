"""Language modelling: the mean cross-entropy of every token of plain text."""

from __future__ import annotations

from farstep.trainers.trainer import Trainer


class CausalTrainer(Trainer):
    """Rows: `text`."""

    name = "causal"
