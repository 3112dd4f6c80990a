"""The values that users give and get: frozen, slotted, with arrays inside.

Nothing here speaks to a server. Values are checked where they are made; what depends on the model (its
vocabulary, its context) is checked at the call.

Shapes: T tokens of one sequence, K candidates a position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from farstep._numbers import check_number
from farstep._sampling_params import SamplingParams
from farstep._tensor_data import TensorData, TensorLike, as_tensor_data
from farstep.errors import InvalidInputError
from farstep.results import (
    ForwardBackwardOutput,
    LoadWeightsResponse,
    LoraConfig,
    OperationTrace,
    OptimStepResponse,
    QueuedOperation,
    RunInfo,
    SampledSequence,
    SampledToken,
    SampleResult,
    SaveWeightsResponse,
    ServerCapabilities,
    SupportedModel,
    TrainingInfo,
)
from farstep_proto.loss_table import IGNORE_INDEX
from farstep_proto.tensors import IntArray

__all__ = [
    "AdamParams",
    "Datum",
    "EncodedTextChunk",
    "ForwardBackwardOutput",
    "ImageChunk",
    "LoadWeightsResponse",
    "LoraConfig",
    "ModelInput",
    "ModelInputChunk",
    "OperationTrace",
    "OptimStepResponse",
    "QueuedOperation",
    "RunInfo",
    "SampleResult",
    "SampledSequence",
    "SampledToken",
    "SamplingParams",
    "SaveWeightsResponse",
    "ServerCapabilities",
    "SupportedModel",
    "TensorData",
    "TrainingInfo",
    "WandbConfig",
]

_INT32 = np.iinfo(np.int32)


def _token_array(tokens: Iterable[int] | npt.NDArray[np.integer[Any]], *, field: str) -> IntArray:
    array = tokens if isinstance(tokens, np.ndarray) else np.asarray(list(tokens))
    if array.size == 0:
        return np.zeros(0, dtype=np.int32)
    if array.ndim != 1:
        raise InvalidInputError(f"shape {list(array.shape)}, expected one row of token ids", field=field)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{field}: token ids must be whole numbers, not {array.dtype}")
    if int(array.min()) < _INT32.min or int(array.max()) > _INT32.max:
        raise InvalidInputError("a token id does not fit into 32 bits", field=field)
    ids = array.astype(np.int32)
    ids.setflags(write=False)
    return ids


@dataclass(frozen=True, slots=True, eq=False, init=False)
class EncodedTextChunk:
    """Token ids [T], kept as int32."""

    tokens: IntArray

    def __init__(self, tokens: Iterable[int] | npt.NDArray[np.integer[Any]]) -> None:
        object.__setattr__(self, "tokens", _token_array(tokens, field="tokens"))

    @property
    def length(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EncodedTextChunk):
            return NotImplemented
        return np.array_equal(self.tokens, other.tokens)

    def __hash__(self) -> int:
        return hash(self.tokens.tobytes())

    def __repr__(self) -> str:
        return f"EncodedTextChunk({_shortened(self.tokens)})"


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """An encoded image. `expected_tokens` is how many positions it takes, where that is known."""

    data: bytes = field(repr=False)
    format: Literal["png", "jpeg"]
    expected_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.format not in ("png", "jpeg"):
            raise InvalidInputError(f"{self.format!r} is neither 'png' nor 'jpeg'", field="format")

    @property
    def length(self) -> int:
        if self.expected_tokens is None:
            raise ValueError("an image's length is known only where expected_tokens is given")
        return self.expected_tokens


ModelInputChunk = EncodedTextChunk | ImageChunk


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What the model reads: chunks in order."""

    chunks: tuple[ModelInputChunk, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunks", tuple(self.chunks))
        for chunk in self.chunks:
            if not isinstance(chunk, EncodedTextChunk | ImageChunk):
                raise TypeError(f"chunks: expected EncodedTextChunk or ImageChunk, not {type(chunk).__name__}")

    @classmethod
    def from_ints(cls, tokens: Iterable[int] | npt.NDArray[np.integer[Any]]) -> ModelInput:
        return cls((EncodedTextChunk(tokens),))

    def to_ints(self) -> list[int]:
        """Raises ValueError where there is a chunk that is not text."""
        ids: list[int] = []
        for chunk in self.chunks:
            if isinstance(chunk, ImageChunk):
                raise ValueError("an image has no token ids")
            ids += chunk.tokens.tolist()
        return ids

    @property
    def length(self) -> int:
        return sum(chunk.length for chunk in self.chunks)

    def append(self, chunk: ModelInputChunk) -> ModelInput:
        """A new input with `chunk` at the end; this one stays as it is."""
        return ModelInput((*self.chunks, chunk))


@dataclass(frozen=True, slots=True, eq=False, init=False)
class Datum:
    """One example: a model input of T positions, and for each what the loss needs.

    Every loss input is as long as the model input. Labels are not shifted by the server: `target_tokens[i]`
    is the label of position i, that is token i + 1; -100 is ignored. Lists become int64 for `target_tokens`
    and float32 for everything else.
    """

    model_input: ModelInput
    loss_fn_inputs: Mapping[str, TensorData]

    def __init__(self, model_input: ModelInput, loss_fn_inputs: Mapping[str, TensorLike]) -> None:
        inputs = {key: as_tensor_data(key, value) for key, value in loss_fn_inputs.items()}
        object.__setattr__(self, "model_input", model_input)
        object.__setattr__(self, "loss_fn_inputs", MappingProxyType(inputs))

    @classmethod
    def from_prompt_completion(
        cls, prompt: Sequence[int], completion: Sequence[int], **completion_inputs: float | Sequence[float]
    ) -> Datum:
        """An example with the loss on the completion alone: shifted by one, the prompt's labels ignored.

        Args:
            prompt: token ids, at least one.
            completion: token ids, at least one.
            completion_inputs: further loss inputs, a number for each completion token or one for all of them;
                the prompt's positions get 0. `logprobs=sequence.logprobs, advantages=0.5` makes a policy-gradient
                example of a sampled sequence.
        """
        for name, ids in (("prompt", prompt), ("completion", completion)):
            if len(ids) == 0:
                raise InvalidInputError("no tokens", field=name)
        tokens = np.concatenate([_token_array(prompt, field="prompt"), _token_array(completion, field="completion")])
        num_ignored = len(prompt) - 1
        inputs: dict[str, TensorLike] = {"target_tokens": np.r_[np.full(num_ignored, IGNORE_INDEX), completion]}
        for key, values in completion_inputs.items():
            array = np.asarray(values, dtype=np.float32)
            if array.ndim and array.shape != (len(completion),):
                raise InvalidInputError(
                    f"shape {list(array.shape)} does not match the completion's {len(completion)} tokens", field=key
                )
            inputs[key] = np.r_[np.zeros(num_ignored, np.float32), np.broadcast_to(array, len(completion))]
        return cls(ModelInput.from_ints(tokens[:-1]), inputs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Datum):
            return NotImplemented
        return self.model_input == other.model_input and dict(self.loss_fn_inputs) == dict(other.loss_fn_inputs)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Datum, (self.model_input, dict(self.loss_fn_inputs))


@dataclass(frozen=True, slots=True)
class AdamParams:
    """Settings of one optimizer step. `grad_clip_norm` 0 does not clip."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "grad_clip_norm"):
            check_number(name, getattr(self, name), lambda value: value >= 0, "at least 0")
        for name in ("beta1", "beta2"):
            check_number(name, getattr(self, name), lambda value: 0 <= value < 1, "in [0, 1)")
        check_number("eps", self.eps, lambda value: value > 0, "positive")


@dataclass(frozen=True, slots=True)
class WandbConfig:
    """Where a run's metrics go. `mode="offline"` needs no network; `config` is stored with the run."""

    project: str
    name: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline", "disabled"] | None = None
    dir: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def _shortened(array: npt.NDArray[np.generic], *, most: int = 8) -> str:
    shown = ", ".join(str(value) for value in array[:most].tolist())
    return f"[{shown}]" if len(array) <= most else f"[{shown}, … {len(array)} in all]"
