"""What is computed at once: some data side by side or end to end, and where in them the targets stand.

Data is sorted by length and cut into micro-batches under a token budget. Padded, each sequence has a row and is filled
up on the right, where causal attention needs no mask; packed, all lie end to end in one row. What is computed from a
micro-batch is none of its business.

Shapes: B rows of a micro-batch, T positions of a row, N positions with a target, K candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from farstep_model.batching import micro_batches, packed_batches
from farstep_model.load import BaseModel
from farstep_model.packed import Layout, Packing
from farstep_model.sequences import Sequences
from farstep_proto.loss_table import BOUND_INPUTS, IGNORE_INDEX, MASK_INPUTS
from farstep_worker.custom_data import PREFIX
from farstep_worker.device import device_at
from farstep_worker.submission import Example

Form = tuple[tuple[str, str, tuple[int, ...]], ...]

# What stands for an input that some data of a micro-batch have, and others not. What is not here, then none has.
_ABSENT: Mapping[str, float] = {
    "weights": 1.0,
    **dict.fromkeys(MASK_INPUTS, 1.0),
    **dict.fromkeys(BOUND_INPUTS, np.nan),
}


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Some data, and the N positions that have a target; the first `num_weighted` of them carry a weight.

    `token_ids` [B, T], `positions` [N] in the flattened [B·T], `inputs` [N] or [N, K]; on the host, of each
    position its datum's place in `indices` [N] and its place in that datum [N]. `packing` is there if they are packed,
    and B is 1.
    """

    indices: Sequence[int]
    token_ids: Tensor
    packing: Packing | None
    positions: Tensor
    inputs: Mapping[str, Tensor]
    num_weighted: int
    rows: np.ndarray
    places: np.ndarray

    @classmethod
    def of(
        cls, examples: Sequence[Example], indices: Sequence[int], *, device: torch.device, layout: Layout = "padded"
    ) -> MicroBatch:
        chosen = [examples[index] for index in indices]
        lengths = [len(example.tokens) for example in chosen]
        upload = device_at(device).upload
        inputs = _concatenate([example.inputs for example in chosen])
        rows = np.repeat(np.arange(len(chosen)), lengths)
        places = np.concatenate([np.arange(length) for length in lengths])
        asked = inputs["target_tokens"] != IGNORE_INDEX
        weighted = _any_candidate(asked & (inputs["weights"] != 0))
        only_asked = _any_candidate(asked) & ~weighted
        order = np.concatenate([np.flatnonzero(weighted), np.flatnonzero(only_asked)])
        if layout == "packed":
            ids_BT = np.concatenate([example.tokens for example in chosen])[None].astype(np.int64)
            positions = order
        else:
            ids_BT = _padded([example.tokens for example in chosen])
            positions = rows[order] * max(lengths) + places[order]
        return cls(
            indices=indices,
            token_ids=upload(ids_BT),
            packing=Packing.of(lengths, upload=upload) if layout == "packed" else None,
            positions=upload(positions),
            inputs={key: upload(array[order]) for key, array in inputs.items()},
            num_weighted=int(weighted.sum()),
            rows=rows[order],
            places=places[order],
        )

    def hidden_states(self, base: BaseModel) -> Tensor:
        """The last hidden states [N, D] at the positions."""
        arguments = {} if self.packing is None else self.packing.arguments
        return base.hidden_states(self.token_ids, **arguments).flatten(0, 1).index_select(0, self.positions)

    def weighted_inputs(self) -> dict[str, Tensor]:
        """Of the weighted positions; a custom loss's own inputs by the names that it has for them."""
        plain = {key: tensor[: self.num_weighted] for key, tensor in self.inputs.items()}
        own = {key.removeprefix(PREFIX): tensor for key, tensor in plain.items() if key.startswith(PREFIX)}
        return plain | own

    def sequences(self) -> Sequences:
        """Whose the weighted positions are."""
        rows_N = device_at(self.positions.device).upload(self.rows[: self.num_weighted])
        return Sequences(rows_N, len(self.indices))

    def scatter(self, logprobs: Tensor, outputs: list[np.ndarray]) -> None:
        """Puts log-probabilities [N] or [N, K] back to where their targets stood."""
        values = torch.where(self.inputs["target_tokens"] != IGNORE_INDEX, logprobs, 0.0).cpu().numpy()
        for row, index in enumerate(self.indices):
            mine = self.rows == row
            outputs[index][self.places[mine]] = values[mine]


def plan(
    examples: Sequence[Example], token_budget: int, *, num_together: int, layout: Layout = "padded"
) -> list[list[int]]:
    """Micro-batches of data whose targets, and inputs of their own, have the same number of candidates.

    So many data that follow each other stay together.
    """
    groups: dict[Form, list[range]] = {}
    for start in range(0, len(examples), num_together):
        groups.setdefault(_form(examples[start]), []).append(range(start, start + num_together))
    return [
        [index for i in batch for index in members[i]]
        for members in groups.values()
        for batch in _cut([[len(examples[i].tokens) for i in together] for together in members], token_budget, layout)
    ]


def _form(example: Example) -> Form:
    """What must be alike where arrays are put end to end."""
    return tuple(
        (key, array.dtype.char, array.shape[1:])
        for key, array in example.inputs.items()
        if key == "target_tokens" or key.startswith(PREFIX)
    )


def halves(indices: Sequence[int], *, num_together: int) -> list[list[int]]:
    """A micro-batch in two, in the same order; one alone if nothing is left to split."""
    middle = len(indices) // num_together // 2 * num_together
    return [list(part) for part in (indices[:middle], indices[middle:]) if part]


def num_tokens(examples: Sequence[Example], indices: Sequence[int], layout: Layout) -> int:
    """Of a micro-batch, padding included."""
    lengths = [len(examples[index].tokens) for index in indices]
    return sum(lengths) if layout == "packed" else max(lengths) * len(lengths)


def _cut(lengths: Sequence[Sequence[int]], token_budget: int, layout: Layout) -> list[list[int]]:
    """Groups of what stays together, of the lengths given for each."""
    if layout == "packed":
        return packed_batches([sum(together) for together in lengths], token_budget)
    return micro_batches([max(together) for together in lengths], max(1, token_budget // len(lengths[0])))


def _padded(tokens: Sequence[np.ndarray]) -> np.ndarray:
    """Rows [B, T], filled up with token 0."""
    ids_BT = np.zeros((len(tokens), max(map(len, tokens))), dtype=np.int64)
    for row, sequence in enumerate(tokens):
        ids_BT[row, : len(sequence)] = sequence
    return ids_BT


def _concatenate(all_inputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What every datum has; where one has none, weights and masks are 1, and bounds are NaN: as they were set."""
    keys = dict.fromkeys(["weights", *(key for inputs in all_inputs for key in inputs)])
    shapes = [inputs["target_tokens"].shape for inputs in all_inputs]
    return {
        key: np.concatenate(
            [
                inputs[key] if key in inputs else np.full(shape, _ABSENT[key], dtype=np.float32)
                for inputs, shape in zip(all_inputs, shapes, strict=True)
            ]
        )
        for key in keys
        if key in _ABSENT or all(key in inputs for inputs in all_inputs)
    }


def _any_candidate(mask: np.ndarray) -> np.ndarray:
    return np.asarray(mask.reshape(len(mask), -1).any(axis=1))
