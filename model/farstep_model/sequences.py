"""Which of the tokens that lie side by side belong to one sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """`ids` [N] int64 is the number of each token's sequence, of `count` sequences; one may be without tokens."""

    ids: Tensor
    count: int

    @classmethod
    def single(cls, num_tokens: int, *, device: torch.device) -> Sequences:
        """All tokens are of one sequence."""
        return cls(torch.zeros(num_tokens, dtype=torch.long, device=device), 1)

    def lengths(self) -> list[int]:
        """How many tokens each has, on the host; they lie one after the other."""
        lengths: list[int] = torch.bincount(self.ids, minlength=self.count).tolist()
        return lengths

    def sums(self, values_N: Tensor) -> Tensor:
        """Of each sequence [count], differentiable."""
        return values_N.new_zeros(self.count).index_add(0, self.ids, values_N)

    def means(self, values_N: Tensor, included_N: Tensor) -> Tensor:
        """At each token [N] the mean over the included tokens of its sequence; 0 where none is."""
        included_N = included_N.to(values_N.dtype)
        mean_S = self.sums(values_N * included_N) / self.sums(included_N).clamp_min(1)
        return mean_S[self.ids]
