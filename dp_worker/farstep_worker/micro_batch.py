"""What is computed at once: some data side by side, and where in them the targets stand.

Data is sorted by length and cut into micro-batches under a token budget; sequences are padded on the right,
where causal attention needs no mask. What is computed from a micro-batch is none of its business.

Shapes: B rows of a micro-batch, T positions (padded), N positions with a target, K candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from farstep_model.batching import micro_batches
from farstep_proto.loss_table import IGNORE_INDEX, MASK_INPUTS
from farstep_worker.submission import Example


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Data side by side, and the N positions that have a target; the first `num_weighted` of them carry a weight.

    `token_ids` [B, T], `positions` [N] in the flattened [B·T], `inputs` [N] or [N, K]; on the host, of each
    position its row [N] and its place in that row [N].
    """

    indices: Sequence[int]
    token_ids: Tensor
    positions: Tensor
    inputs: Mapping[str, Tensor]
    num_weighted: int
    rows: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, examples: Sequence[Example], indices: Sequence[int], *, device: torch.device) -> MicroBatch:
        chosen = [examples[index] for index in indices]
        longest = max(len(example.tokens) for example in chosen)
        ids_BT = np.zeros((len(chosen), longest), dtype=np.int64)
        for row, example in enumerate(chosen):
            ids_BT[row, : len(example.tokens)] = example.tokens
        inputs = _concatenate([example.inputs for example in chosen])
        rows = np.repeat(np.arange(len(chosen)), [len(example.tokens) for example in chosen])
        places = np.concatenate([np.arange(len(example.tokens)) for example in chosen])
        asked = inputs["target_tokens"] != IGNORE_INDEX
        weighted = _any_candidate(asked & (inputs["weights"] != 0))
        only_asked = _any_candidate(asked) & ~weighted
        order = np.concatenate([np.flatnonzero(weighted), np.flatnonzero(only_asked)])
        return cls(
            indices=indices,
            token_ids=torch.from_numpy(ids_BT).to(device),
            positions=torch.from_numpy(rows[order] * longest + places[order]).to(device),
            inputs={key: torch.from_numpy(array[order]).to(device) for key, array in inputs.items()},
            num_weighted=int(weighted.sum()),
            rows=rows[order],
            places=places[order],
        )

    def scatter(self, logprobs: Tensor, outputs: list[np.ndarray]) -> None:
        """Puts log-probabilities [N] or [N, K] back to where their targets stood."""
        values = torch.where(self.inputs["target_tokens"] != IGNORE_INDEX, logprobs.detach(), 0.0).cpu().numpy()
        for row, index in enumerate(self.indices):
            mine = self.rows == row
            outputs[index][self.places[mine]] = values[mine]


def plan(examples: Sequence[Example], token_budget: int, *, num_together: int) -> list[list[int]]:
    """Micro-batches of data whose targets have the same number of candidates.

    So many data that follow each other stay side by side.
    """
    groups: dict[tuple[int, ...], list[range]] = {}
    for start in range(0, len(examples), num_together):
        candidates = examples[start].inputs["target_tokens"].shape[1:]
        groups.setdefault(candidates, []).append(range(start, start + num_together))
    return [
        [index for i in batch for index in members[i]]
        for members in groups.values()
        for batch in micro_batches(
            [max(len(examples[i].tokens) for i in together) for together in members],
            max(1, token_budget // num_together),
        )
    ]


def _concatenate(all_inputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What every datum has; weights and masks are 1 where one has none."""
    keys = dict.fromkeys(["weights", *(key for inputs in all_inputs for key in inputs)])
    ones = [np.ones(inputs["target_tokens"].shape, dtype=np.float32) for inputs in all_inputs]
    return {
        key: np.concatenate([inputs.get(key, one) for inputs, one in zip(all_inputs, ones, strict=True)])
        for key in keys
        if key == "weights" or key in MASK_INPUTS or all(key in inputs for inputs in all_inputs)
    }


def _any_candidate(mask: np.ndarray) -> np.ndarray:
    return np.asarray(mask.reshape(len(mask), -1).any(axis=1))
