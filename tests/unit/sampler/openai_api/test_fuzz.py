"""Whatever a body says, the answer is no mistake of the server's, and in the API's own shape."""

import json
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.sampler.openai_api.conftest import MODEL

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = [
    "n",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "response_format",
    "structured_outputs",
    "stream",
    "stream_options",
    "logprobs",
    "return_token_ids",
    "prompt_logprobs",
    "echo",
    "best_of",
    "prompt",
    "messages",
    "model",
    "top_logprobs",
    "tools",
    "tool_choice",
    "user",
    "chat_template_kwargs",
    "continue_final_message",
    "add_generation_prompt",
    "parallel_tool_calls",
    "skip_special_tokens",
]
plausible = (
    st.integers(-2, 5) | st.floats(-1, 2) | st.sampled_from(["auto", "required", "", "x", MODEL]) | st.booleans()
)
shapes = st.sampled_from(
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}},
        {"choice": ["a", "b"]},
        {"regex": "(a+"},
        {"1": 5},
        [{"role": "user", "content": "x"}],
        [{"role": "assistant", "content": "x"}],
        [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#"}}}],
        {"include_usage": True},
        [1, 2, 3],
        ["a", "b"],
    ]
)
bodies = st.dictionaries(st.sampled_from(NAMES), plausible | shapes | json_values, max_size=5)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["chat/completions", "completions"]), body=bodies)
async def test_no_body_is_too_strange(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    whole = {"model": MODEL, "prompt": "x", "max_tokens": 2} if path == "completions" else {
        "model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}  # fmt: skip
    response = await http.post(f"/v1/{path}", content=json.dumps(whole | body).encode())
    assert response.status_code < 500, (body, response.text)
    if response.status_code == 200:
        assert '"error"' not in response.text or not body.get("stream"), (body, response.text)
    else:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=40) | st.just(b"[" * 100_000) | st.just(b'{"model": "\\ud800", "prompt": "\\ud800"}'))
async def test_no_bytes_are_too_strange(http: httpx.AsyncClient, data: bytes) -> None:
    response = await http.post("/v1/completions", content=data)
    assert response.status_code in (400, 404), response.text
