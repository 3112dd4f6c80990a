"""What a Tinker client asks to have sampled, as our own sample request: pure, and checked where our wire is narrower.

What a request means and ours does not is said here: a list of stops replaces the model's own end, an empty one leaves
nothing that ends a sequence; seeds have no sign. Everything else is the sampler's to judge, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from farstep_infra.gateway.bodies import Body, refused
from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import sampling_pb2 as pb

_MAX_SEED = (1 << 64) - 1
_NAMES = {
    "params": "sampling_params",
    "topk_logprobs": "topk_sample_logprobs",
    "include_prompt_logprobs": "prompt_logprobs",
    "params.stop_strings": "sampling_params.stop",
    "params.stop_tokens": "sampling_params.stop",
    "target_prompt_logprobs.token_ids": "target_prompt_logprobs.data",
    "target_prompt_logprobs.crow_indices": "target_prompt_logprobs.sparse_crow_indices",
    "target_prompt_logprobs.col_indices": "target_prompt_logprobs.sparse_col_indices",
}

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Envelope(Body):
    """What must be right for a mistake in the rest to be told in a future."""

    sampling_session_id: str
    seq_id: Annotated[int, Field(ge=0, lt=2**63)]
    num_samples: int = 1


class Chunk(Body):
    type: str = "encoded_text"
    tokens: list[Int32] | None = None


class Prompt(Body):
    chunks: list[Chunk]


class Params(Body):
    """As the SDK has them: `stop` null is the model's own end, [] is none at all."""

    max_tokens: Int32 | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=_MAX_SEED)] | None = None
    stop: str | list[str] | list[Int32] | None = None
    temperature: float = 1.0
    top_k: Int32 = -1
    top_p: float = 1.0


class Tensor(Body):
    """Dense, or with its cells listed (CSR) where the two index lists are given."""

    data: list[Int32]
    dtype: Literal["int64"]
    shape: list[Int64] | None = None
    sparse_crow_indices: list[Int64] | None = None
    sparse_col_indices: list[Int64] | None = None


class Sample(Body):
    prompt: Prompt
    sampling_params: Params
    num_samples: Int32 = 1
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: Int32 = 0
    topk_sample_logprobs: Int32 = 0
    target_prompt_logprobs: Tensor | None = None
    prompt_alt_tokens_k: Int32 = 0
    prompt_logprobs_last_n: Int32 | None = None


def named_here(field: str | None) -> str | None:
    """A field of our request by the name that it has on this wire."""
    if field is None:
        return None
    head, dot, rest = field.partition(".")
    whole, bracket, index = field.partition("[")
    if whole in _NAMES:
        return _NAMES[whole] + bracket + index
    return _NAMES.get(head, head) + dot + rest


def to_sample_request(body: Mapping[str, Any]) -> pb.SampleRequest:
    """The request without what it is sampled from.

    Raises:
        InvalidInput: naming the field.
    """
    try:
        sample = Sample.model_validate(body)
    except ValidationError as error:
        raise refused(error) from error
    request = pb.SampleRequest(
        prompt=_prompt(sample.prompt),
        num_samples=sample.num_samples,
        params=_params(sample.sampling_params),
        include_prompt_logprobs=bool(sample.prompt_logprobs),
        topk_prompt_logprobs=sample.topk_prompt_logprobs,
        topk_logprobs=sample.topk_sample_logprobs,
        prompt_alt_tokens_k=sample.prompt_alt_tokens_k,
        prompt_logprobs_last_n=sample.prompt_logprobs_last_n,
    )
    if sample.target_prompt_logprobs is not None:
        request.target_prompt_logprobs.CopyFrom(_targets(sample.target_prompt_logprobs))
    return request


def _prompt(prompt: Prompt) -> common_pb2.ModelInput:
    chunks = []
    for index, chunk in enumerate(prompt.chunks):
        field = f"prompt.chunks[{index}]"
        if chunk.type != "encoded_text":
            raise InvalidInput(f"a chunk of type {chunk.type!r}: text alone can be sampled from", field=field)
        if chunk.tokens is None:
            raise InvalidInput("it has no tokens", field=f"{field}.tokens")
        text = common_pb2.EncodedTextChunk(tokens=_bytes(chunk.tokens, "<i4"))
        chunks.append(common_pb2.Chunk(encoded_text=text))
    return common_pb2.ModelInput(chunks=chunks)


def _params(params: Params) -> pb.SamplingParams:
    stops = [params.stop] if isinstance(params.stop, str) else params.stop
    seed = params.seed
    return pb.SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=seed if seed is None or seed < 1 << 63 else seed - (1 << 64),  # the same 64 bits
        stop_strings=[stop for stop in stops or () if isinstance(stop, str)],
        stop_tokens=[stop for stop in stops or () if isinstance(stop, int)],
        ignore_eos=stops is not None,
    )


def _targets(tensor: Tensor) -> pb.PromptTargets:
    field = "target_prompt_logprobs"
    if tensor.shape is None or len(tensor.shape) != 2:
        raise InvalidInput("it has a shape [tokens of the prompt - 1, K]", field=f"{field}.shape")
    crow, columns = tensor.sparse_crow_indices, tensor.sparse_col_indices
    if (crow is None) != (columns is None):
        raise InvalidInput("both lists of indices or neither", field=f"{field}.sparse_crow_indices")
    num_rows, k = tensor.shape
    if num_rows < 0 or not 1 <= k < 2**31:
        raise InvalidInput(f"{tensor.shape} is no shape of a table", field=f"{field}.shape")
    if crow is None and num_rows * k != len(tensor.data):
        raise InvalidInput(f"{len(tensor.data)} numbers do not fill {num_rows} x {k}", field=f"{field}.data")
    if crow is not None and len(crow) != num_rows + 1:
        raise InvalidInput(f"{len(crow)} numbers for {num_rows} rows", field=f"{field}.sparse_crow_indices")
    return pb.PromptTargets(
        k=k,
        token_ids=_bytes(tensor.data, "<i4"),
        crow_indices=_bytes(crow or (), "<i8"),
        col_indices=_bytes(columns or (), "<i8"),
    )


def _bytes(values: Sequence[int], dtype: str) -> bytes:
    return np.array(values, dtype=dtype).tobytes()
