"""`TrainSequence`: one row of tokens, and beside each token what is known of it.

Everything is aligned with `tokens`: entry t is about token t, as it was predicted from what came before it. Token 0
is predicted from nothing and never trained. The wire's shift by one position happens here and nowhere else.
Computes nothing.

Shapes: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from farstep.trainers.errors import DataError
from farstep.types import Datum, ModelInput
from farstep_proto.loss_table import IGNORE_INDEX

Targets = Literal["trained", "all"]

_PER_TOKEN = ("logprobs", "advantages", "returns", "values", "ref_logprobs")


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """A row of T tokens.

    Args:
        tokens: [T] ids, at least two.
        loss_mask: [T], the weight of token t as a target; 0: not trained. Entry 0 is without effect.
        prompt_mask: [T], 1 where a token was given rather than sampled or to be learnt; None: where the mask is 0.
        logprobs: [T], of the policy that sampled the row.
        advantages, returns: [T], of choosing token t.
        values: [T], what a critic expected before token t was chosen.
        ref_logprobs: [T], of the reference.
        reward: of the whole row.
        metadata: whatever one wants to know of it later; not sent.

    Raises:
        DataError: fewer than two tokens, or a field of another length.
    """

    tokens: list[int]
    loss_mask: list[float]
    prompt_mask: list[int] | None = None
    logprobs: list[float] | None = None
    advantages: list[float] | None = None
    returns: list[float] | None = None
    values: list[float] | None = None
    ref_logprobs: list[float] | None = None
    reward: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.tokens) < 2:
            raise DataError(
                f"{len(self.tokens)} tokens, and the first is never a target", field="tokens", hint="at least two"
            )
        if self.prompt_mask is None:
            object.__setattr__(self, "prompt_mask", [int(weight == 0) for weight in self.loss_mask])
        for name in ("loss_mask", "prompt_mask", *_PER_TOKEN):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.tokens):
                raise DataError(f"{len(values)} entries for {len(self.tokens)} tokens", field=name)

    @classmethod
    def from_prompt_completion(cls, prompt: Sequence[int], completion: Sequence[int], **given: Any) -> Self:
        """A row that trains the completion alone."""
        mask = [0.0] * len(prompt) + [1.0] * len(completion)
        return cls([*prompt, *completion], mask, [1] * len(prompt) + [0] * len(completion), **given)

    def __repr__(self) -> str:
        """Short: a batch of them is written out with an error, or by asyncio with a task."""
        known = [name for name in _PER_TOKEN if getattr(self, name) is not None]
        about = f", with {', '.join(known)}" if known else ""
        return f"<TrainSequence of {len(self)} tokens, {self.num_targets} trained{about}, reward {self.reward:g}>"

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_targets(self) -> int:
        """How many tokens are trained."""
        return sum(weight != 0 for weight in self.loss_mask[1:])

    @property
    def weight(self) -> float:
        """Σ |weight| of the tokens that are trained: what a mean over tokens divides by."""
        return float(sum(abs(weight) for weight in self.loss_mask[1:]))

    def replace(self, **changes: Any) -> Self:
        """The same row with other values in some fields."""
        return type(self)(**({each.name: getattr(self, each.name) for each in fields(self)} | changes))

    def averaged(self) -> Self:
        """The same row with weights that sum to 1: what a loss sums over it is then a mean."""
        total = self.weight or 1.0
        return self.replace(loss_mask=[weight / total for weight in self.loss_mask])

    def to_datum(self, *names: str, targets: Targets = "trained", weights: bool = True) -> Datum:
        """What is sent: [T - 1] positions, each with the next token as its label.

        Args:
            names: per-token fields that the loss takes, such as "logprobs" and "advantages".
            targets: "trained": tokens with a weight of 0 have no label; "all": every token has.
            weights: whether weights other than 0 and 1 go along.

        Raises:
            DataError: a field that was asked for is not there.
        """
        tokens_T = np.asarray(self.tokens)
        mask_T = np.asarray(self.loss_mask, np.float32)
        labels = np.where(mask_T == 0, IGNORE_INDEX, tokens_T)[1:] if targets == "trained" else tokens_T[1:]
        inputs: dict[str, npt.NDArray[Any]] = {"target_tokens": labels}
        if weights and not np.isin(mask_T[1:], (0.0, 1.0)).all():
            inputs["weights"] = mask_T[1:]
        for name in names:
            inputs[name] = np.asarray(self._given(name), np.float32)[1:]
        return Datum(ModelInput.from_ints(tokens_T[:-1]), inputs)

    def _given(self, name: str) -> list[float]:
        if name not in _PER_TOKEN:
            raise DataError(f"no field {name!r}", field="names", hint=f"one of {', '.join(_PER_TOKEN)}")
        values: list[float] | None = getattr(self, name)
        if values is None:
            raise DataError("this row has none", field=name)
        return values


def aligned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[T - 1] values of a datum as they came back, beside the tokens of their row: [T], 0 for token 0."""
    return np.concatenate([np.zeros(1, values.dtype), values])
