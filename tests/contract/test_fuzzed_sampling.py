"""Sampling parameters of every kind, in JSON and in protobuf, to a real sampler.

Whatever is sent, the answer is a result that is well formed or an error below 500 that names what is wrong. What is no
message at all is sent by `test_fuzz`.
"""

import json
import math

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farstep_proto import paths
from farstep_proto.tensors import model_input_to_proto
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import sampling_pb2 as pb
from tests.support.processes import KEY

VOCAB_SIZE = 1024
PROMPT = [1, 40, 41]

INT32 = st.one_of(st.integers(-3, 12), st.sampled_from([-(2**31), 2**31 - 1, 1023, 1024, 5000]))
INT64 = st.one_of(st.integers(-3, 12), st.sampled_from([-(2**63), 2**63 - 1]))
ODD_NUMBERS = [math.nan, math.inf, -math.inf, -0.0, 1e-300, 1e-4, 1e300, -1.0, 100.0, 1e6]
NUMBER = st.one_of(st.floats(-0.5, 2.5), st.floats(), st.sampled_from(ODD_NUMBERS))
TEXT = st.one_of(st.text(max_size=6), st.sampled_from(["", "(", "a+", "[0-9]{2}", "a{9999999}", "\0", "{}", '"']))
SCHEMAS = [
    "{}", "[]", "true", "false", "{", '{"type": "integer"}', '{"type": 3}', '{"enum": []}', '{"enum": ["a", 1, null]}',
    '{"$ref": "#"}', '{"minimum": 1e999}', '{"pattern": "("}', '{"not": {}}', "[" * 3000,
]  # fmt: skip
GRAMMARS = ['start: "a"', "root ::= [a-c]+", "start:", "::=", "start: start", "%ignore", "start: /(/"]

FIELDS = {
    "max_tokens": INT32,
    "temperature": NUMBER,
    "top_p": NUMBER,
    "top_k": INT32,
    "min_p": NUMBER,
    "seed": INT64,
    "stop_strings": st.lists(TEXT, max_size=3),
    "stop_tokens": st.lists(INT32, max_size=3),
    "ignore_eos": st.booleans(),
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "repetition_penalty": NUMBER,
    "logit_bias": st.dictionaries(INT32, NUMBER, max_size=3),
    "min_tokens": INT32,
    "json_schema": st.one_of(TEXT, st.sampled_from(SCHEMAS)),
    "regex": TEXT,
    "grammar": st.one_of(TEXT, st.sampled_from(GRAMMARS)),
    "choice": st.lists(TEXT, max_size=3),
}
# What JSON can hold and protobuf cannot: values of the wrong type.
WRONG = st.sampled_from(
    [None, True, "x", "NaN", "Infinity", "1", [], [1], [None], {}, {"a": 1}, {"1": None}, 1.5, -1, 2**40, "9" * 400,
     "\ud800"]
)  # fmt: skip
OUTER = {
    "num_samples": st.integers(-1, 3),
    "topk_logprobs": st.sampled_from([0, 0, 0, 2, -1, 200]),
    "topk_prompt_logprobs": st.sampled_from([0, 0, 0, 1, -1]),
}


@st.composite
def parameters(draw: st.DrawFn) -> dict[str, object]:
    """A few fields at a time: with all of them, nearly every request would be refused for its first."""
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True))
    return {name: draw(FIELDS[name]) for name in names}


@pytest.fixture(scope="module")
def sampler(pair):
    headers = {"Authorization": f"Bearer {KEY}", "Accept": paths.PROTOBUF}
    with httpx.Client(base_url=pair[1].url, headers=headers, timeout=60) as client:
        yield client


def check(response: httpx.Response, *, said: str) -> None:
    assert response.status_code < 500, (response.status_code, response.content, said)
    if response.status_code == 200:
        check_result(pb.SampleResponse.FromString(response.content))
        return
    error = common_pb2.Error.FromString(response.content)
    assert error.message
    assert error.error_class
    assert error.field, said
    name = error.field.removeprefix("params.").split("[")[0]
    assert name in {*FIELDS, *OUTER, "prompt"}, (error, said)


def check_result(result: pb.SampleResponse) -> None:
    for sequence in result.sequences:
        tokens = np.frombuffer(sequence.tokens, "<i4")
        logprobs = np.frombuffer(sequence.logprobs, "<f4")
        assert tokens.shape == logprobs.shape
        assert ((tokens >= 0) & (tokens < VOCAB_SIZE)).all()
        assert (logprobs <= 0).all()
        assert np.isfinite(logprobs).all()
        assert sequence.stop_reason in ("stop", "length")


FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(params=parameters(), outer=st.fixed_dictionaries({}, optional=OUTER))
def test_protobuf(sampler: httpx.Client, params: dict[str, object], outer: dict[str, int]) -> None:
    message = pb.SampleRequest(prompt=model_input_to_proto(PROMPT), params=pb.SamplingParams(**params))
    message.MergeFrom(pb.SampleRequest(**{"num_samples": 1, **outer}))
    message.params.max_tokens = min(message.params.max_tokens, 12) if message.params.HasField("max_tokens") else 6
    response = sampler.post(paths.SAMPLE, content=message.SerializeToString(), headers={"Content-Type": paths.PROTOBUF})
    check(response, said=f"{params} {outer}")


@FUZZ
@given(params=parameters(), wrong=st.dictionaries(st.sampled_from(sorted(FIELDS)), WRONG, max_size=1))
def test_json(sampler: httpx.Client, params: dict[str, object], wrong: dict[str, object]) -> None:
    body = {
        "prompt": {"chunks": [{"encoded_text": {"ids": PROMPT}}]},
        "num_samples": 1,
        "params": {"max_tokens": 6, **in_json(params), **wrong},
    }
    response = sampler.post(paths.SAMPLE, content=json.dumps(body), headers={"Content-Type": paths.JSON})
    check(response, said=str(body["params"]))


def in_json(params: dict[str, object]) -> dict[str, object]:
    """As protobuf's JSON has it: odd numbers in words, keys as text."""

    def value(found: object) -> object:
        match found:
            case float() if not math.isfinite(found):
                return "NaN" if math.isnan(found) else "Infinity" if found > 0 else "-Infinity"
            case dict():
                return {str(key): value(each) for key, each in found.items()}
            case _:
                return found

    return {name: value(found) for name, found in params.items()}
