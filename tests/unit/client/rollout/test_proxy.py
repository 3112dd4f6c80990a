"""The proxy before a sampler that fails: what is repeated, what is passed on, what is collected."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from farstep.rollout.collecting import Collector
from farstep.rollout.params import SamplingParams
from farstep.rollout.proxy import upstream as upstreams
from farstep.rollout.proxy.app import ProxyRoutes
from farstep.rollout.proxy.streams import StreamedAnswer
from farstep.rollout.proxy.upstream import Upstream
from farstep.sampling import OpenAiEndpoint

KEY = "random"
CHAT = [{"role": "user", "content": "Hello"}]
ANSWER: dict[str, Any] = {
    "id": "x",
    "policy_version": 4,
    "prompt_token_ids": [1, 2],
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi"},
            "token_ids": [3, 4],
            "policy_versions": [4, 4],
            "logprobs": {"content": [{"logprob": -0.1}, {"logprob": -0.2}]},
            "finish_reason": "stop",
        }
    ],
}
Handler = Callable[[httpx.Request], httpx.Response]


def endpoint() -> OpenAiEndpoint:
    return OpenAiEndpoint("http://sampler/v1", "fsk", "run@4", {"X-Policy-Version": "4"})


class Proxied:
    """The routes before a sampler that is a function."""

    def __init__(self, handler: Handler, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        monkeypatch.setattr(upstreams, "_FIRST_PAUSE_S", 0.001)
        monkeypatch.setattr(upstreams, "_LONGEST_PAUSE_S", 0.001)
        self.seen: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            self.seen.append(request)
            return handler(request)

        restart_s = settings.pop("restart_s", 0.0)
        self.upstream = Upstream(max_retries=2, restart_s=restart_s, transport=httpx.MockTransport(answer))
        params = settings.pop("params", SamplingParams(max_new_tokens=9, seed=3, stop="x", stop_token_ids=[7]))
        self.collector = Collector("0-0", params, endpoint, (0, 0, 0))
        self.counted: list[str] = []
        routes = ProxyRoutes(
            self.upstream,
            key=KEY,
            find={"0-0": self.collector}.get,
            count=self.counted.append,
            params=params,
            in_flight="finish",
            max_turns=None,
            endpoint=endpoint,
            policy_version=lambda: 4,
        )
        self.http = TestClient(routes.app(), base_url="http://127.0.0.1:1", headers={"Authorization": f"Bearer {KEY}"})

    def ask(self, **body: Any) -> httpx.Response:
        return self.http.post("/s/0-0/v1/chat/completions", json={"model": "m", "messages": CHAT, **body})

    def asked(self, index: int = -1) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.seen[index].content)
        return found


def test_nothing_limits_how_long_an_answer_takes() -> None:
    timeout = Upstream(max_retries=0)._http.timeout
    assert (timeout.read, timeout.write, timeout.pool) == (None, None, None)


def test_what_is_asked_of_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    proxied = Proxied(lambda request: httpx.Response(200, json=ANSWER), monkeypatch)
    assert proxied.ask(temperature=0.5).json() == ANSWER
    asked = proxied.asked()
    assert {"model": "run@4", "temperature": 0.5, "max_tokens": 9, "stop": ["x"], "stop_token_ids": [7]}.items() <= (
        asked.items()
    )
    assert asked["logprobs"] is asked["return_token_ids"] is True
    assert proxied.seen[0].headers["X-Policy-Version"] == "4"
    assert proxied.seen[0].headers["Authorization"] == "Bearer fsk"
    (turn,) = proxied.collector.turns
    assert (turn.prompt, turn.tokens, turn.logprobs, turn.versions) == ((1, 2), (3, 4), (-0.1, -0.2), (4, 4))

    longer = [*CHAT, ANSWER["choices"][0]["message"], *CHAT]
    proxied.ask(messages=longer, max_completion_tokens=3, seed=None)
    again = proxied.asked()
    assert again["prefix_token_ids"] == [1, 2, 3, 4]
    assert "max_tokens" not in again
    assert again["seed"] != asked["seed"]  # each turn draws anew
    other = [*CHAT, {"role": "assistant", "content": "Ho"}, *CHAT]
    proxied.ask(messages=other)
    assert "prefix_token_ids" not in proxied.asked()


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_sampler_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    """So often and no more; the reasons are counted."""
    outcomes: list[Any] = [httpx.ConnectError("no"), httpx.Response(503), httpx.Response(200, json=ANSWER)]

    def handler(request: httpx.Request) -> httpx.Response:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    proxied = Proxied(handler, monkeypatch)
    assert proxied.ask(stream=stream).status_code == 200
    assert proxied.counted == ["retried_ConnectError", "retried_status_503"]
    outcomes += [httpx.ConnectError("no")] * 3
    refused = proxied.ask(stream=stream)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    error = {"error": {"message": "later", "type": "x", "param": None, "code": None}}
    outcomes += [httpx.Response(429, json=error)] * 3
    refused = proxied.ask(stream=stream)
    assert (refused.status_code, refused.json()) == (429, error)
    outcomes += [httpx.Response(400, json=error)]
    assert proxied.ask(stream=stream).status_code == 400
    outcomes += [httpx.Response(404, text="<html>")]
    assert proxied.ask(stream=stream).status_code == 502
    assert not outcomes
    assert proxied.collector.problems.total() == len(proxied.counted)


def test_a_sampler_that_is_started_anew_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody listens a request is not lost, however often it is tried; what was sent and broke off is counted."""
    outcomes: list[Any] = [httpx.ConnectError("no")] * 8 + [httpx.ReadError("cut"), httpx.Response(200, json=ANSWER)]

    def handler(request: httpx.Request) -> httpx.Response:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    proxied = Proxied(handler, monkeypatch, restart_s=1e9)
    assert proxied.ask().status_code == 200
    assert proxied.collector.problems == {"retried_ConnectError": 8, "retried_ReadError": 1}
    outcomes += [httpx.ReadError("cut")] * 3
    assert proxied.ask().status_code == 503


def test_a_stream_that_is_cut_is_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "H"}, "token_ids": [3]}]}

    class Cut(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield f"data: {json.dumps(chunk)}\n\n".encode()
            raise httpx.ReadError("gone")

    proxied = Proxied(lambda request: httpx.Response(200, stream=Cut()), monkeypatch)
    text = proxied.ask(stream=True).text
    assert '"H"' in text
    assert "was cut off" in text
    assert proxied.collector.turns == []
    assert proxied.collector.problems == {"stream_cut": 1}
    failing = 'data: {"error": {"message": "oh"}}\n\ndata: [DONE]\n\n'
    proxied = Proxied(lambda request: httpx.Response(200, text=failing), monkeypatch)
    assert proxied.ask(stream=True).text == failing
    assert proxied.collector.turns == []


def test_an_answer_that_comes_too_late_is_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    proxied = Proxied(lambda request: httpx.Response(200, json=ANSWER), monkeypatch)
    proxied.collector.is_closed = True
    assert proxied.ask().status_code == 200
    assert proxied.collector.turns == []


def test_what_it_waits_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    words = []

    def handler(request: httpx.Request) -> httpx.Response:
        words.append(proxied.collector.describe())
        return httpx.Response(200, json=ANSWER)

    proxied = Proxied(handler, monkeypatch)
    proxied.ask()
    assert words == ["0-0: the model, for 0 s"]
    assert proxied.collector.describe() == "0-0: the agent's own code, 1 turns so far"


def test_turns_are_there_when_the_last_choice_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that leaves at a finish reason, as many do, has had a turn; one that leaves before has had none."""
    choice = ANSWER["choices"][0]
    chunk = {key: ANSWER[key] for key in ("id", "policy_version", "prompt_token_ids")}
    ends = [{**chunk, "choices": [{**choice, "index": index, "delta": {"content": "Hi"}}]} for index in (0, 1)]
    stream = StreamedAnswer(2)
    assert [stream.read(f"data: {json.dumps(each)}") for each in ends] == [False, True]
    assert [each["token_ids"] for each in stream.answer()["choices"]] == [[3, 4], [3, 4]]
    assert not stream.read("data: " + json.dumps({**chunk, "choices": [], "usage": {}}))  # once
    assert not stream.read("data: [DONE]")
    cut = StreamedAnswer()
    assert not cut.read("data: " + json.dumps({"error": {"message": "gone"}}))
    assert not cut.read(f"data: {json.dumps(ends[0])}")


def test_dialogues_that_grow_are_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request brings all messages again; turns hold what is new."""
    proxied = Proxied(lambda request: httpx.Response(200, json=ANSWER), monkeypatch)
    long = [{"role": "user", "content": "a" * 1000}]
    for _ in range(3):
        assert proxied.ask(messages=long).status_code == 200
        long = [*long, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "more"}]
    turns = proxied.collector.turns
    assert [len(turn.messages) for turn in turns] == [1, 3, 5]
    for first, second in itertools.pairwise(turns):
        assert all(a is b for a, b in zip(first.messages, second.messages, strict=False))
        assert first.tokens[0] is second.tokens[0]


@pytest.mark.parametrize(
    ("asked", "is_own"),
    [
        ({}, True),
        ({"temperature": 1, "top_p": 1.0, "top_k": 0, "tool_choice": "auto"}, True),
        ({"temperature": 0.7}, False),
        ({"top_p": 0.9}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"response_format": {"type": "text"}}, True),
        ({"logit_bias": {"5": 1}}, False),
        ({"tool_choice": "required"}, False),
        ({"structured_outputs": {"choice": ["a"]}}, False),
    ],
)
def test_it_is_known_whether_an_answer_is_of_the_models_own_distribution(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], is_own: bool
) -> None:
    proxied = Proxied(lambda request: httpx.Response(200, json=ANSWER), monkeypatch)
    assert proxied.ask(**asked).status_code == 200
    assert proxied.collector.turns[0].is_models_own is is_own
