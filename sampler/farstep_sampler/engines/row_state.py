"""What the next step needs to know of each row, as tensors: made when the rows change, else carried along.

Shapes: R rows, the empty ones at the end included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from farstep_sampler.logit_controls import LogitControls
from farstep_sampler.request import NO_TOP_K
from farstep_sampler.sampling import RowSettings
from farstep_sampler.scheduler import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class RowState:
    """`tokens` [R] stand at `positions` [R] and go in next; `slots` [R] are on the CPU, the rest on the device.

    Empty rows start with token 0 at position 0 and decode the base model greedily; nobody reads them.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    settings: RowSettings
    controls: LogitControls | None
    num_topk: int

    @classmethod
    def of(cls, running: list[Sequence], *, num_rows: int, device: torch.device) -> RowState:
        jobs = [sequence.group.job for sequence in running]
        num_empty = num_rows - len(running)

        def whole(values: list[int]) -> Tensor:
            return torch.tensor(values + [0] * num_empty, dtype=torch.long, device=device)

        def real(values: list[float], filler: float) -> Tensor:
            return torch.tensor(values + [filler] * num_empty, dtype=torch.float64, device=device)

        truncated = [r for r, job in enumerate(jobs) if job.top_k != NO_TOP_K or job.top_p < 1 or job.min_p > 0]
        return cls(
            tokens=whole([sequence.last_token for sequence in running]),
            positions=whole([sequence.position for sequence in running]),
            slots=torch.tensor([sequence.group.slot for sequence in running] + [0] * num_empty),
            settings=RowSettings(
                temperature=real([job.temperature for job in jobs], 0.0).float(),
                top_k=whole([job.top_k for job in jobs]),
                top_p=real([job.top_p for job in jobs], 1.0),
                min_p=real([job.min_p for job in jobs], 0.0),
                truncated=torch.tensor(truncated, dtype=torch.long, device=device),
            ),
            controls=LogitControls.of([sequence.controls for sequence in running], device=device),
            num_topk=max((job.num_topk for job in jobs), default=0),
        )

    def advanced(self, tokens_R: Tensor) -> RowState:
        """The state after `tokens_R` were chosen for the same rows; empty ones walk along behind the others."""
        return replace(self, tokens=tokens_R, positions=self.positions + 1)

    def pad(self, uniforms: list[float]) -> Tensor:
        """One uniform number a row [R], float64."""
        missing = len(self.tokens) - len(uniforms)
        return torch.tensor(uniforms + [0.0] * missing, dtype=torch.float64, device=self.tokens.device)
