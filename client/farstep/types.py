"""The values that users give and get: frozen, slotted, with arrays inside.

Nothing here speaks to a server. Values are checked where they are made; what depends on the model (its
vocabulary, its context) is checked at the call.

Shapes: T tokens of one sequence, K candidates a position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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
            _check(name, getattr(self, name), lambda value: value >= 0, "at least 0")
        for name in ("beta1", "beta2"):
            _check(name, getattr(self, name), lambda value: 0 <= value < 1, "in [0, 1)")
        _check("eps", self.eps, lambda value: value > 0, "positive")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    Args:
        max_tokens: at most so many new tokens; None: up to the model's context.
        temperature: 0 takes the most likely token.
        top_p, top_k, min_p: which tokens may be drawn; 1, -1 and 0 allow all.
        seed: same seed, same weights, same request: same tokens, whatever else is in the batch.
        stop: a string, strings, a token id or token ids; the matched stop token is included.
        ignore_eos: goes on beyond the model's own end token.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | int | Sequence[int] | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _check("max_tokens", self.max_tokens, lambda value: value >= 1, "at least 1", whole=True)
        _check("temperature", self.temperature, lambda value: value >= 0, "at least 0")
        _check("top_p", self.top_p, lambda value: 0 < value <= 1, "in (0, 1]")
        _check("top_k", self.top_k, lambda value: value == -1 or value >= 1, "-1 or at least 1", whole=True)
        _check("min_p", self.min_p, lambda value: 0 <= value <= 1, "in [0, 1]")
        if self.seed is not None:
            _check("seed", self.seed, lambda value: -(2**63) <= value < 2**63, "a 64-bit number", whole=True)
        self.stops()

    def stops(self) -> tuple[list[str], list[int]]:
        """The stop strings and the stop tokens."""
        stops = [self.stop] if isinstance(self.stop, str | int) else list(self.stop or ())
        strings = [stop for stop in stops if isinstance(stop, str)]
        ids = [int(stop) for stop in stops if isinstance(stop, int | np.integer) and not isinstance(stop, bool)]
        if len(strings) not in (0, len(stops)) or len(strings) + len(ids) != len(stops):
            raise TypeError("stop: must be strings or token ids, not a mixture")
        if "" in strings:
            raise InvalidInputError("an empty string stops nothing", field="stop")
        if any(not 0 <= token <= _INT32.max for token in ids):
            raise InvalidInputError("a token id is negative or too large", field="stop")
        return strings, ids


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


def _check(name: str, value: float, holds: Callable[[float], bool], expected: str, *, whole: bool = False) -> None:
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name}: must be {'a whole number' if whole else 'a number'}, not {type(value).__name__}")
    if not math.isfinite(value) or not holds(value):
        raise InvalidInputError(f"{value} is not {expected}", field=name)


def _shortened(array: npt.NDArray[np.generic], *, most: int = 8) -> str:
    shown = ", ".join(str(value) for value in array[:most].tolist())
    return f"[{shown}]" if len(array) <= most else f"[{shown}, … {len(array)} in all]"
