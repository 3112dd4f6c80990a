"""`Role`: what another model of a trainer is for. A declaration; `roles` makes runs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Literal

from farstep.trainers.errors import RoleError

Head = Literal["lm", "value", "reward"]
Ability = Literal["logprobs", "values", "rewards", "training"]
ABILITIES: Mapping[Head, Ability] = {"lm": "logprobs", "value": "values", "reward": "rewards"}

POLICY = "policy"


@dataclass(frozen=True, slots=True)
class Role:
    """
    Args:
        path: a training checkpoint; None: the weights that the trainer's run began with (where it is not trained), or
            a fresh adapter beside what `model.path` names (where it is).
        trainable: whether `train_values` may be asked of it.
        head: "lm": log-probabilities; "value": a number for each token, from a value head that begins at 0 where the
            checkpoint has none; "reward": one for the row, read at its last token by the checkpoint's value head.
        lr: of its own optimizer; `optimizer_lr` is the same.

    Raises:
        RoleError: what was given does not go together.
    """

    name: str
    path: str | None = None
    trainable: bool = False
    head: Head = "lm"
    lr: float | None = None
    optimizer_lr: InitVar[float | None] = None

    def __post_init__(self, optimizer_lr: float | None) -> None:
        if self.lr is None:
            object.__setattr__(self, "lr", optimizer_lr)
        if not self.name or self.name == POLICY:
            raise RoleError(
                f"{self.name!r} is no name for a role", role=self.name, hint=f"{POLICY!r} is the run itself"
            )
        if self.head not in ABILITIES:
            raise RoleError(f"there is no head {self.head!r}", role=self.name, hint=f"one of {', '.join(ABILITIES)}")
        if self.head == "reward" and self.path is None:
            raise RoleError(
                f"the role {self.name!r} has no path",
                role=self.name,
                hint="a reward model is a checkpoint of a run that was trained with a value head",
            )
        if self.trainable and self.head != "value":
            raise RoleError(
                f"the role {self.name!r} cannot be trained: only one with head='value' can",
                role=self.name,
                ability="training",
                hint="a second policy is a trainer of its own",
            )
        if self.lr is not None and not self.lr >= 0:
            raise RoleError(f"lr: {self.lr} of the role {self.name!r} is below 0", role=self.name)

    @property
    def is_start(self) -> bool:
        """Whether it needs no run: the trainer's own knows how it began."""
        return self.head == "lm" and self.path is None

    @property
    def abilities(self) -> Sequence[Ability]:
        return (ABILITIES[self.head], *(("training",) if self.trainable else ()))
