"""What a request may say, and how it is refused otherwise."""

import math

import numpy as np
import pytest

from farstep_proto.errors import InvalidInput
from farstep_proto.tensors import ids_to_bytes, model_input_to_proto
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.request import NO_TOP_K, ModelLimits, gate_of, job_of, target_of
from farstep_sampler.versions import AtLeast, Exactly
from farstep_serving.keys import OPERATOR

LIMITS = ModelLimits(max_seq_len=64, vocab_size=100, eos_token_ids=(2,))
FIELDS = ("X-Min-Policy-Version", "X-Policy-Version")


def request(tokens: list[int] | None = None, **params: object) -> pb.SampleRequest:
    prompt = model_input_to_proto([5, 6, 7] if tokens is None else tokens)
    return pb.SampleRequest(prompt=prompt, num_samples=1, params=pb.SamplingParams(**params))


def refusal(message: pb.SampleRequest) -> str:
    with pytest.raises(InvalidInput) as caught:
        job_of(message, limits=LIMITS)
    return caught.value.field


def test_what_is_left_open() -> None:
    job = job_of(request(), limits=LIMITS)
    assert (job.temperature, job.top_p, job.min_p, job.top_k) == (1.0, 1.0, 0.0, NO_TOP_K)
    assert job.max_tokens == 61
    assert job.stop_tokens == {2}
    assert job.seed != job_of(request(), limits=LIMITS).seed
    np.testing.assert_array_equal(job.prompt, [5, 6, 7])


def test_what_is_given() -> None:
    message = request(max_tokens=4, temperature=0.0, top_k=3, seed=-5, stop_tokens=[9], ignore_eos=True)
    job = job_of(message, limits=LIMITS)
    assert (job.max_tokens, job.temperature, job.top_k, job.seed) == (4, 0.0, 3, -5)
    assert job.stop_tokens == {9}


def test_what_changes_the_logits() -> None:
    plain = job_of(request(repetition_penalty=1.0), limits=LIMITS)
    assert (plain.penalties, plain.logit_bias, plain.min_tokens, plain.constraint) == (None, (), 0, None)
    job = job_of(
        request(presence_penalty=1, repetition_penalty=2, logit_bias={9: 1, 3: -100}, min_tokens=2), limits=LIMITS
    )
    assert job.penalties is not None
    assert (job.penalties.presence, job.penalties.frequency, job.penalties.repetition) == (1, 0, 2)
    assert job.penalties.prompt_tokens.tolist() == [5, 6, 7]
    assert job.logit_bias == ((3, -100.0), (9, 1.0))
    assert job.min_tokens == 2


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"temperature": -1.0}, "params.temperature"),
        ({"temperature": math.nan}, "params.temperature"),
        ({"temperature": math.inf}, "params.temperature"),
        ({"temperature": 1e-9}, "params.temperature"),
        ({"top_p": 0.0}, "params.top_p"),
        ({"top_p": 1.5}, "params.top_p"),
        ({"top_p": math.nan}, "params.top_p"),
        ({"top_k": 0}, "params.top_k"),
        ({"top_k": -2}, "params.top_k"),
        ({"min_p": -0.1}, "params.min_p"),
        ({"min_p": math.nan}, "params.min_p"),
        ({"max_tokens": -1}, "params.max_tokens"),
        ({"max_tokens": 0}, "params.max_tokens"),
        ({"max_tokens": 62}, "params.max_tokens"),
        ({"stop_tokens": [3, 100]}, "params.stop_tokens[1]"),
        ({"stop_strings": ["a", ""]}, "params.stop_strings[1]"),
        ({"stop_strings": ["a"] * 65}, "params.stop_strings"),
        ({"temperature": 1e7}, "params.temperature"),
        ({"presence_penalty": 2.1}, "params.presence_penalty"),
        ({"frequency_penalty": math.nan}, "params.frequency_penalty"),
        ({"repetition_penalty": 0.0}, "params.repetition_penalty"),
        ({"repetition_penalty": math.inf}, "params.repetition_penalty"),
        ({"logit_bias": {100: 1.0}}, "params.logit_bias[100]"),
        ({"logit_bias": {-1: 1.0}}, "params.logit_bias[-1]"),
        ({"logit_bias": {5: math.nan}}, "params.logit_bias[5]"),
        ({"min_tokens": -1}, "params.min_tokens"),
        ({"min_tokens": 62}, "params.min_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "params.min_tokens"),
        ({"min_tokens": 1, "stop_tokens": list(range(100))}, "params.min_tokens"),
        ({"regex": "a", "ignore_eos": True}, "params.ignore_eos"),
        ({"regex": "a", "grammar": "b"}, "params.grammar"),
    ],
)
def test_a_bad_parameter_is_named(params: dict[str, object], field: str) -> None:
    assert refusal(request(**params)) == field


@pytest.mark.parametrize("tokens", [[], [1, 100], [-1], [1] * 65, [1] * 64])
def test_a_bad_prompt_is_named(tokens: list[int]) -> None:
    assert refusal(request(tokens)).startswith("prompt")


def test_an_image_is_refused_by_its_place() -> None:
    message = request()
    message.prompt.chunks.append(common_pb2.Chunk(image=common_pb2.ImageChunk(data=b"x", format="png")))
    assert refusal(message) == "prompt.chunks[1]"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_samples", 0),
        ("num_samples", 1025),
        ("topk_logprobs", -1),
        ("topk_prompt_logprobs", 101),
        ("prompt_alt_tokens_k", 129),
    ],
)
def test_a_bad_count_is_named(field: str, value: int) -> None:
    message = request()
    setattr(message, field, value)
    assert refusal(message) == field


def test_no_tokens_are_fine_for_prompt_log_probabilities() -> None:
    message = request([1] * 64, max_tokens=0)
    message.include_prompt_logprobs = True
    assert job_of(message, limits=LIMITS).max_tokens == 0


def test_what_is_asked_about_a_prompt() -> None:
    message = request([1] * 64, max_tokens=0)
    message.prompt_alt_tokens_k = 2
    assert job_of(message, limits=LIMITS).first_looked == 1
    message.ClearField("prompt_alt_tokens_k")
    message.include_prompt_logprobs = True
    message.prompt_logprobs_last_n = 3
    assert job_of(message, limits=LIMITS).first_looked == 61
    message.target_prompt_logprobs.k = 1
    message.target_prompt_logprobs.token_ids = ids_to_bytes([-1] * 20 + [7] * 43)
    assert job_of(message, limits=LIMITS).first_looked == 21
    assert job_of(request(), limits=LIMITS).first_looked is None


@pytest.mark.parametrize("last_n", [0, 3, -1])
def test_only_prompt_tokens_after_the_first_can_be_the_last_ones(last_n: int) -> None:
    message = request()
    message.include_prompt_logprobs = True
    message.prompt_logprobs_last_n = last_n
    assert refusal(message) == "prompt_logprobs_last_n"


def test_the_last_prompt_tokens_need_prompt_log_probabilities() -> None:
    message = request()
    message.topk_prompt_logprobs = 1
    message.prompt_logprobs_last_n = 1
    assert refusal(message) == "prompt_logprobs_last_n"


def test_targets() -> None:
    gate = AtLeast(3)
    assert target_of(pb.SampleRequest(run_id="r"), gate=gate, caller=OPERATOR, default_wait_s=60).source == "r"
    path = "tinker://r/sampler_weights/x"
    checkpoint = target_of(pb.SampleRequest(model_path=path), gate=AtLeast(0), caller=OPERATOR, default_wait_s=60)
    assert checkpoint.source == "bt://loops:r/sampler_weights/x"
    assert checkpoint.is_checkpoint
    assert (
        target_of(pb.SampleRequest(gate_wait_s=0), gate=AtLeast(0), caller=OPERATOR, default_wait_s=60).gate_wait_s == 0
    )


@pytest.mark.parametrize(
    ("message", "gate", "field"),
    [
        (pb.SampleRequest(run_id="r", model_path="bt://loops:r/weights/x"), AtLeast(0), "model_path"),
        (pb.SampleRequest(model_path="x"), AtLeast(0), "model_path"),
        (pb.SampleRequest(run_id="a/b"), AtLeast(0), "run_id"),
        (pb.SampleRequest(), AtLeast(1), "run_id"),
        (pb.SampleRequest(run_id="r", gate_wait_s=-1), AtLeast(0), "gate_wait_s"),
        (pb.SampleRequest(run_id="r", gate_wait_s=math.nan), AtLeast(0), "gate_wait_s"),
    ],
)
def test_a_bad_target_is_named(message: pb.SampleRequest, gate: AtLeast, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        target_of(message, gate=gate, caller=OPERATOR, default_wait_s=60)
    assert caught.value.field == field


def test_gates() -> None:
    assert gate_of(at_least=None, exactly=None, fields=FIELDS) == AtLeast(0)
    assert gate_of(at_least="7", exactly=None, fields=FIELDS) == AtLeast(7)
    assert gate_of(at_least=None, exactly="7", fields=FIELDS) == Exactly(7)
    for at_least, exactly in [("1", "1"), ("-1", None), ("x", None), (None, "1.5"), ("²", None)]:
        with pytest.raises(InvalidInput) as caught:
            gate_of(at_least=at_least, exactly=exactly, fields=FIELDS)
        assert caught.value.field in FIELDS
