"""Completions and models with the unmodified openai client, on a real replica."""

import asyncio
import threading
from collections.abc import Callable

import httpx
import openai
import pytest

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.replica import Replica
from farstep_sampler.versions import PolicyId
from farstep_serving.keys import OPERATOR
from tests.unit.sampler.openai_api.conftest import KEY, MODEL

MakeAdapter = Callable[..., Adapter]
Client = openai.AsyncOpenAI


async def test_a_completion(client: Client, base: BaseModel) -> None:
    answer = await client.completions.create(
        model=MODEL, prompt="The quick", max_tokens=8, seed=1, extra_body={"ignore_eos": True, "return_token_ids": True}
    )
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("text_completion", MODEL, "length")
    choice = answer.choices[0].model_dump()
    assert choice["prompt_token_ids"] == base.tokenizer.encode("The quick")
    assert choice["text"] == base.tokenizer.decode(choice["token_ids"], skip_special_tokens=True)
    assert choice["policy_versions"] == [0] * 8
    usage = answer.usage
    assert usage is not None
    assert (usage.completion_tokens, usage.prompt_tokens) == (8, len(choice["prompt_token_ids"]))
    assert usage.total_tokens == usage.prompt_tokens + 8
    assert (await client.completions.create(model="tiny", prompt="x")).usage.completion_tokens <= 16


@pytest.mark.parametrize("extra", [{}, {"echo": True}, {"stop": ["e", "an"]}, {"n": 3}, {"temperature": 0}])
async def test_a_stream_says_what_the_whole_answer_says(client: Client, extra: dict[str, object]) -> None:
    async def create(**more: object) -> object:
        return await client.completions.create(
            model=MODEL, prompt=["One", [5, 6, 7]][0:1], max_tokens=40, seed=3, **extra, **more
        )

    whole = await create()
    texts = dict.fromkeys(range(len(whole.choices)), "")
    reasons = {}
    usages = []
    async for chunk in await create(stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        usages.append(chunk.usage)
    assert list(texts.values()) == [choice.text for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1].completion_tokens == whole.usage.completion_tokens
    assert usages[-1].prompt_tokens == whole.usage.prompt_tokens


async def test_stop_strings_are_not_said(client: Client) -> None:
    free = (await client.completions.create(model=MODEL, prompt="One", max_tokens=60, temperature=0)).choices[0].text
    stop = free[10:13]
    answer = await client.completions.create(model=MODEL, prompt="One", max_tokens=60, temperature=0, stop=stop)
    assert answer.choices[0].text == free[: free.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts(client: Client, stream: bool) -> None:
    async def texts(prompt: object, n: int) -> dict[int, str]:
        answer = await client.completions.create(
            model=MODEL, prompt=prompt, n=n, max_tokens=6, seed=2, stream=stream, extra_body={"ignore_eos": True}
        )
        found: dict[int, str] = {}
        if not stream:
            return {choice.index: choice.text for choice in answer.choices}
        async for chunk in answer:
            for choice in chunk.choices:
                found[choice.index] = found.get(choice.index, "") + choice.text
        return found

    both = await texts([[5, 6, 7], [8, 9]], 2)
    first, second = await texts([5, 6, 7], 2), await texts([[8, 9]], 2)
    assert both == {**first, 2: second[0], 3: second[1]}


async def test_echo_and_logprobs(client: Client, base: BaseModel) -> None:
    answer = await client.completions.create(
        model=MODEL, prompt="The quick", max_tokens=4, logprobs=2, echo=True, seed=1, extra_body={"ignore_eos": True}
    )
    choice = answer.choices[0]
    logprobs = choice.logprobs
    num_prompt = answer.usage.prompt_tokens
    assert choice.text.startswith("The quick")
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == num_prompt + 4
    assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.top_logprobs[1][logprobs.tokens[1]] == logprobs.token_logprobs[1]
    assert logprobs.text_offset[:2] == [0, len(logprobs.tokens[0])]
    scored = await client.completions.create(model=MODEL, prompt="The quick", max_tokens=0, logprobs=0, echo=True)
    assert scored.choices[0].text == "The quick"
    assert scored.choices[0].logprobs.token_logprobs == pytest.approx(
        logprobs.token_logprobs[:num_prompt], abs=1e-5, nan_ok=True
    )
    rows = (await client.completions.create(model=MODEL, prompt="The", extra_body={"prompt_logprobs": 1})).choices[0]
    assert rows.model_dump()["prompt_logprobs"][0] is None


async def test_sampling_parameters_arrive(client: Client, base: BaseModel) -> None:
    token = base.tokenizer.encode("Z", add_special_tokens=False)[0]
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "return_token_ids": True}
    answer = await client.completions.create(
        model=MODEL, prompt="x", max_tokens=5, logit_bias={str(token): 100}, presence_penalty=0.5, frequency_penalty=0,
        top_p=0.9, extra_body=extra,
    )  # fmt: skip
    assert token in answer.choices[0].model_dump()["token_ids"]
    picked = await client.completions.create(
        model=MODEL, prompt="x", max_tokens=20, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert picked.choices[0].text in ("yes", "no")


async def test_models_and_their_names(client: Client, replica: Replica, make_adapter: MakeAdapter) -> None:
    for version in (1, 2):
        replica._swapper.offer(PolicyId("run-a", version), make_adapter(version).to_bytes())
        await replica.wait_for_policy("run-a", OPERATOR, min_version=version, wait_s=10)
    listed = {model.id async for model in client.models.list()}
    assert {MODEL, "tiny", "run-a", "run-a@1", "run-a@2"} <= listed
    assert (await client.models.retrieve("run-a@2")).id == "run-a@2"
    assert (await client.models.retrieve(MODEL)).id == MODEL

    async def said(model: str, **headers: str) -> tuple[str, int]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await client.completions.create(
            model=model, prompt="abc", max_tokens=8, temperature=0, extra_headers=named
        )
        return answer.choices[0].text, answer.model_dump()["policy_version"]

    assert (await said("run-a"))[1] == 2
    assert (await said("run-a@1")) == (await said("run-a", X_Policy_Version="1"))
    assert (await said("run-a@1"))[0] != (await said("run-a@2"))[0]
    assert (await said("run-a", X_Min_Policy_Version="2")) == await said("run-a@2")
    assert (await said("run-a@0"))[0] == (await said(MODEL))[0]
    with pytest.raises(openai.BadRequestError):
        await said("run-a@1", X_Policy_Version="2")
    with pytest.raises(openai.APIStatusError) as early:
        await client.completions.create(model="run-a@7", prompt="abc", extra_body={"gate_wait_s": 0.1})
    assert (early.value.status_code, early.value.code) == (425, "policy_not_ready")
    for name in ("nobody", "run-a@x", "bt://nonsense", "bt://loops:r/sampler_weights/none", "a b", ""):
        with pytest.raises(openai.NotFoundError) as caught:
            await said(name)
        assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"logprobs": 1000}, "top_logprobs"),
        ({"stop": [""]}, "stop[0]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias[99999]"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[1], [99999]]}, "prompt[1]"),
        ({"prompt": "x" * 200_000}, "prompt"),
        ({"seed": 2**70}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"use_beam_search": True}}, "use_beam_search"),
        ({"extra_body": {"response_format": {"type": "json_schema"}}}, "response_format.json_schema.schema"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "structured_outputs.regex"),
        ({"stream": True, "echo": True, "logprobs": 1}, "logprobs"),
    ],
)
async def test_refusals_name_the_parameter(client: Client, arguments: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(**({"model": MODEL, "prompt": "x"} | arguments))
    assert caught.value.param == param, caught.value
    assert caught.value.type == "invalid_request_error"


async def test_clients_raise_their_own_errors(url: str, client: Client, http: httpx.AsyncClient) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.models.list()
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model=MODEL, input="x")
    response = await http.get("/v1/completions")
    assert (response.status_code, response.json()["error"]["type"]) == (405, "invalid_request_error")
    response = await http.post("/v1/completions", content=b"\xff{")
    assert response.status_code == 400
    waited = await http.post(
        "/v1/completions", json={"model": "r", "prompt": "x"}, headers={"X-Min-Policy-Version": "no"}
    )
    assert waited.json()["error"]["param"] == "X-Min-Policy-Version"
    with pytest.raises(openai.RateLimitError):
        await asyncio.gather(
            *(client.completions.create(model=MODEL, prompt="x", max_tokens=200, extra_body={"ignore_eos": True})
              for _ in range(40))
        )  # fmt: skip


async def test_a_client_that_leaves_a_stream_frees_the_rows(client: Client, engine: TorchEngine) -> None:
    stream = await client.completions.create(
        model=MODEL, prompt="x", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    assert engine.has_work
    await stream.close()
    async with asyncio.timeout(10):
        while engine.has_work:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_synchronous_client(url: str) -> None:
    found: list[str] = []

    def ask() -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            found.append(client.completions.create(model=MODEL, prompt="a", max_tokens=5, seed=1).choices[0].text)
            stream = client.completions.create(model=MODEL, prompt="a", max_tokens=5, seed=1, stream=True)
            found.append("".join(choice.text for chunk in stream for choice in chunk.choices))

    thread = threading.Thread(target=ask)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert found[0] == found[1]
