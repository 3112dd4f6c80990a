"""Whom a pass is of: an adapter, on or off, and what its loss looks at, log-probabilities or values.

That says which parameters the loss can reach. What is computed from the outputs, and in what pieces, is none of its
business.

Shapes: N tokens, D hidden size, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from farstep_model.adapter import Adapter
from farstep_model.logprobs import token_logprobs
from farstep_model.value_head import ValueHead
from farstep_proto.loss_table import LossSpec


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """`is_off`: the adapter is as before anything was trained; the model alone, and values of 0."""

    adapter: Adapter
    spec: LossSpec
    is_off: bool = False

    def parameters(self) -> list[nn.Parameter]:
        """Those that the loss can reach."""
        return [parameter for parameter, is_reached in self._all() if is_reached]

    def aligned(self, gradients: Sequence[Tensor]) -> list[Tensor | None]:
        """One for each of the adapter's parameters, from those of `parameters`; None where the loss reaches none."""
        remaining = iter(gradients)
        return [next(remaining) if is_reached else None for _, is_reached in self._all()]

    def outputs(self, hidden_ND: Tensor, targets: Tensor, *, num_weighted: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the loss looks at: of the weighted positions, which come first, with its graph; of the rest without.

        Returns:
            Log-probabilities of `targets` [N] or [N, K], or values [N], in two parts; and the entropies of the first
            where the loss tells of them.
        """
        weighted, rest = slice(None, num_weighted), slice(num_weighted, None)
        if self.spec.output == "values":
            values_N = self._value_head().values(hidden_ND)
            return values_N[weighted], values_N[rest].detach(), None
        base, with_entropy = self.adapter.layers.base, "advantages" in self.spec.required
        logprobs, entropy = token_logprobs(base, hidden_ND[weighted], targets[weighted], with_entropy=with_entropy)
        with torch.no_grad():
            rest_logprobs, _ = token_logprobs(base, hidden_ND[rest], targets[rest])
        return logprobs, rest_logprobs, entropy

    def _all(self) -> list[tuple[nn.Parameter, bool]]:
        return list(zip(self.adapter.parameters(), self.adapter.reached_by(self.spec.output), strict=True))

    def _value_head(self) -> ValueHead:
        head = self.adapter.value_head
        assert head is not None, "checked where the pass was submitted"
        return ValueHead.fresh(self.adapter.layers.base) if self.is_off else head
