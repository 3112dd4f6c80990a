"""Streams from the SDK: both kinds of loop, what ends them, and what happens when they break off."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator

import pytest

import farstep
from farstep import SampledToken, SamplingParams
from farstep_proto.errors import Draining
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import Fault

PARAMS = SamplingParams(max_tokens=6)


@pytest.fixture
def pinned(trainer: object, client: farstep.TrainingClient) -> Iterator[farstep.SamplingClient]:
    with client.save_weights_and_get_sampling_client() as sampling:
        yield sampling


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_plain_loop(sampling: farstep.SamplingClient) -> None:
    stream = sampling.stream([5, 6], PARAMS, topk_logprobs=2)
    tokens = list(stream)
    assert tokens[0] == SampledToken(1, -0.5, 0, [(0, -1.5), (1, -1.5)])
    assert [token.token for token in tokens] == [1, 2, 3, 4, 5, 6]
    assert (stream.policy_version, stream.stop_reason, stream.prompt_cache_hit_tokens) == (0, "length", 1)
    assert list(stream) == []


async def test_an_async_loop(sampling: farstep.SamplingClient) -> None:
    assert [token.token async for token in sampling.stream([5, 6], PARAMS)] == [1, 2, 3, 4, 5, 6]


def test_tokens_come_before_the_end(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    sampler.is_held = True
    with sampling.stream([5, 6], PARAMS) as stream:
        assert next(stream).token == 1
        assert stream.stop_reason is None
        sampler.is_held = False
        assert [next(stream).token for _ in range(5)] == [2, 3, 4, 5, 6]
        with pytest.raises(StopIteration):
            next(stream)


@pytest.mark.parametrize("way", ["break", "with", "dropped", "close"])
def test_leaving_ends_it_on_the_server(sampling: farstep.SamplingClient, sampler: Sampler, way: str) -> None:
    sampler.is_held = True
    stream = sampling.stream([5, 6], PARAMS)
    match way:
        case "break":
            for _ in stream:
                break
        case "with":
            with stream:
                next(stream)
        case "dropped":
            next(stream)
            del stream
            gc.collect()
        case "close":
            assert next(stream).token == 1
            stream.close()
            stream.close()
            with pytest.raises(farstep.ClientClosedError):
                next(stream)
    until(lambda: sampler.num_streams == 0)


async def test_leaving_an_async_loop_ends_it(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    sampler.is_held = True
    async for _ in sampling.stream([5, 6], PARAMS):
        break
    async with asyncio.timeout(10):
        while sampler.num_streams:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_a_stream_that_breaks_off_goes_on(pinned: farstep.SamplingClient, sampler: Sampler) -> None:
    sampler.breaks_after = [2, 0, 5]
    assert [token.token for token in pinned.stream([5, 6], PARAMS)] == [1, 2, 3, 4, 5, 6]
    requests = sampler.requests[-4:]
    assert len({message.params.seed for message, _ in requests}) == 1
    gates = [(headers.get("x-min-policy-version"), headers.get("x-policy-version")) for _, headers in requests]
    assert gates == [("1", None), (None, "1"), (None, "1"), (None, "1")]


def test_a_stream_that_cannot_go_on_exactly_says_so(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    sampler.breaks_after = [2]
    stream = sampling.stream([5, 6], PARAMS)
    tokens = [next(stream).token]
    sampler.first_token = 40
    with pytest.raises(farstep.FarstepError, match="does not go on as it was"):
        tokens += [token.token for token in stream]
    assert set(tokens) <= {1, 2}


def test_refusals(sampling: farstep.SamplingClient, pinned: farstep.SamplingClient, sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="prompt"):
        sampling.stream([10**6])
    with pytest.raises(ValueError, match="topk_logprobs"):
        sampling.stream([1], topk_logprobs=-1)
    sampler.policies.clear()
    with pytest.raises(farstep.PolicyNotReadyError) as caught:
        list(pinned.stream([5, 6], PARAMS))
    assert caught.value.wanted_version == 1


def test_a_server_that_drains_is_asked_again(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    sampler.faults = [Fault("sample:stream", times=2, error=Draining("going")), Fault("sample:stream", status=502)]
    assert len(list(sampling.stream([5, 6], PARAMS))) == 6
    assert sampler.count("sample:stream") == 4


def test_many_at_once(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    sampler.is_held = True
    streams = [sampling.stream([5, 6], PARAMS) for _ in range(50)]
    until(lambda: sampler.num_streams == 50)
    assert sampling.sample([1], 1, PARAMS) is not None  # other requests do not wait for them
    sampler.is_held = False
    assert {len(list(stream)) for stream in streams} == {6}
