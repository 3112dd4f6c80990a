"""The request that a prompt becomes, once it is tokens."""

from __future__ import annotations

from collections.abc import Sequence

from farstep_proto.tensors import model_input_to_proto
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.openai_api.bodies import Common
from farstep_sampler.openai_api.model_names import ModelChoice


def sample_request(
    body: Common, model: ModelChoice, prompt: Sequence[int], params: pb.SamplingParams
) -> pb.SampleRequest:
    """As the native routes take it; what the kinds of completion ask for beyond that they add themselves."""
    request = pb.SampleRequest(
        prompt=model_input_to_proto(prompt),
        num_samples=body.n,
        params=params,
        run_id=model.run_id,
        model_path=model.model_path,
        affinity_key=body.prompt_cache_key or "",
        gate_wait_s=body.gate_wait_s,
        client_id=body.user,
        in_flight=body.in_flight,
    )
    if body.prompt_logprobs is not None:
        request.include_prompt_logprobs = True
        request.topk_prompt_logprobs = body.prompt_logprobs
    return request
