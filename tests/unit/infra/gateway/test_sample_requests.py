"""What the SDK asks of a sampler, in our terms; recorded from it, and what may be wrong with it."""

import json
from typing import Any

import numpy as np
import pytest

from farstep_infra.gateway.sample_requests import named_here, to_sample_request
from farstep_proto.errors import InvalidInput
from farstep_proto.tensors import model_input_ids
from farstep_proto.v1 import sampling_pb2 as pb

# As tinker 0.38.0 sends it.
RECORDED = """{"num_samples":2,"prompt":{"chunks":[{"tokens":[71,68],"type":"encoded_text"}]},
 "sampling_params":{"max_tokens":5,"seed":3,"stop":[258],"temperature":0.7,"top_k":20,"top_p":0.9},
 "sampling_session_id":"s:sample:0","seq_id":0,"prompt_logprobs":true,"topk_prompt_logprobs":2,
 "topk_sample_logprobs":2,"prompt_alt_tokens_k":0,"record_stability_info":false,"type":"sample"}"""


def asked(params: dict[str, Any] | None = None, **changes: Any) -> pb.SampleRequest:
    body = {
        "prompt": {"chunks": [{"tokens": [1, 2], "type": "encoded_text"}, {"tokens": [3]}]},
        "num_samples": 1,
        "sampling_params": {"temperature": 1, "top_k": -1, "top_p": 1, **(params or {})},
    }
    return to_sample_request(body | changes)


def refusal(**changes: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        asked(**changes)
    return caught.value


def test_what_the_sdk_sends() -> None:
    request = to_sample_request(json.loads(RECORDED))
    assert model_input_ids(request.prompt).tolist() == [71, 68]
    assert (request.num_samples, request.topk_prompt_logprobs, request.topk_logprobs) == (2, 2, 2)
    assert request.include_prompt_logprobs
    assert not request.HasField("prompt_logprobs_last_n")
    assert not request.HasField("target_prompt_logprobs")
    expected = pb.SamplingParams(
        max_tokens=5, seed=3, temperature=0.7, top_k=20, top_p=0.9, stop_tokens=[258], ignore_eos=True
    )
    assert request.params == expected


def test_what_is_left_open() -> None:
    request = asked()
    assert model_input_ids(request.prompt).tolist() == [1, 2, 3]
    assert request.params == pb.SamplingParams(temperature=1, top_k=-1, top_p=1)


@pytest.mark.parametrize(
    ("stop", "strings", "tokens", "ignores"),
    [
        (None, [], [], False),
        ([], [], [], True),
        ("END", ["END"], [], True),
        (["a", "b"], ["a", "b"], [], True),
        ([7, 8], [], [7, 8], True),
    ],
)
def test_stops(stop: object, strings: list[str], tokens: list[int], ignores: bool) -> None:
    params = asked({"stop": stop}).params
    assert (list(params.stop_strings), list(params.stop_tokens), params.ignore_eos) == (strings, tokens, ignores)


@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1, 2**63, 2**64 - 1, -1])
def test_seeds_are_64_bits(seed: int) -> None:
    assert asked({"seed": seed}).params.seed % 2**64 == seed % 2**64


def test_targets_dense_and_listed() -> None:
    dense = asked(target_prompt_logprobs={"data": [5, -1, 6, 7], "dtype": "int64", "shape": [2, 2]})
    assert dense.target_prompt_logprobs.k == 2
    assert np.frombuffer(dense.target_prompt_logprobs.token_ids, "<i4").tolist() == [5, -1, 6, 7]
    listed = asked(
        target_prompt_logprobs={
            "data": [5, 6],
            "dtype": "int64",
            "shape": [2, 9],
            "sparse_crow_indices": [0, 1, 2],
            "sparse_col_indices": [8, 0],
        }
    ).target_prompt_logprobs
    assert listed.k == 9
    assert np.frombuffer(listed.crow_indices, "<i8").tolist() == [0, 1, 2]
    assert np.frombuffer(listed.col_indices, "<i8").tolist() == [8, 0]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": {"chunks": [{"type": "image", "data": "aa", "format": "png"}]}}, "prompt.chunks[0]"),
        ({"prompt": {"chunks": [{"tokens": [1]}, {"type": "dmel", "dmel": "aa"}]}}, "prompt.chunks[1]"),
        ({"prompt": {"chunks": [{"type": "encoded_text"}]}}, "prompt.chunks[0].tokens"),
        ({"prompt": {"chunks": [{"tokens": [2**31]}]}}, "prompt.chunks.0.tokens.0"),
        ({"prompt": {"chunks": [{"tokens": [1.5]}]}}, "prompt.chunks.0.tokens.0"),
        ({"prompt": {"chunks": [{"tokens": ["1"]}]}}, "prompt.chunks.0.tokens.0"),
        ({"prompt": {}}, "prompt.chunks"),
        ({"num_samples": 2**31}, "num_samples"),
        ({"params": {"seed": 2**64}}, "sampling_params.seed"),
        ({"params": {"temperature": float("nan")}}, "sampling_params.temperature"),
        ({"params": {"temperature": None}}, "sampling_params.temperature"),
        ({"params": {"max_tokens": "5"}}, "sampling_params.max_tokens"),
        ({"params": {"stop": [1, "a"]}}, "sampling_params.stop"),
        ({"target_prompt_logprobs": {"data": [1], "dtype": "float32", "shape": [1, 1]}}, "target_prompt_logprobs"),
        ({"target_prompt_logprobs": {"data": [1], "dtype": "int64"}}, "target_prompt_logprobs.shape"),
        ({"target_prompt_logprobs": {"data": [1], "dtype": "int64", "shape": [1]}}, "target_prompt_logprobs.shape"),
        ({"target_prompt_logprobs": {"data": [], "dtype": "int64", "shape": [1, 0]}}, "target_prompt_logprobs.shape"),
        ({"target_prompt_logprobs": {"data": [1], "dtype": "int64", "shape": [2, 1]}}, "target_prompt_logprobs.data"),
        (
            {"target_prompt_logprobs": {"data": [], "dtype": "int64", "shape": [2, 1], "sparse_crow_indices": [0]}},
            "target_prompt_logprobs.sparse_crow_indices",
        ),
        (
            {
                "target_prompt_logprobs": {
                    "data": [1],
                    "dtype": "int64",
                    "shape": [2, 1],
                    "sparse_crow_indices": [0, 1],
                    "sparse_col_indices": [0],
                }
            },
            "target_prompt_logprobs.sparse_crow_indices",
        ),
    ],
    ids=str,
)
def test_mistakes_name_their_field(changes: dict[str, Any], field: str) -> None:
    error = refusal(**changes)
    assert (error.field or "").startswith(field)
    assert error.message


def test_fields_have_this_wires_names() -> None:
    told = [
        ("params.temperature", "sampling_params.temperature"),
        ("topk_logprobs", "topk_sample_logprobs"),
        ("prompt.chunks[0]", "prompt.chunks[0]"),
        ("target_prompt_logprobs.token_ids", "target_prompt_logprobs.data"),
        ("target_prompt_logprobs", "target_prompt_logprobs"),
        (None, None),
    ]
    assert [named_here(ours) for ours, _ in told] == [theirs for _, theirs in told]
