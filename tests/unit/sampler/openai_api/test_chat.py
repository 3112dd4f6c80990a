"""Chats with the unmodified openai client: on a real replica, and on scripted text where calls are looked for."""

import asyncio
import json
from collections.abc import Callable

import openai
import pytest

from farstep_model.load import BaseModel
from farstep_proto.errors import ModelError
from tests.unit.sampler.openai_api.conftest import MODEL, Scripted, serving, speaking_to

Client = openai.AsyncOpenAI
Make = Callable[..., Scripted]

HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Bern", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'


async def test_a_chat(client: Client, base: BaseModel) -> None:
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "developer", "content": [{"type": "text", "text": "Be"}]}, *HELLO],
        max_completion_tokens=6,
        seed=1,
        logprobs=True,
        top_logprobs=2,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    choice = answer.choices[0]
    said = choice.model_dump()
    prompt = base.tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be"}, *HELLO], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert answer.model_dump()["prompt_token_ids"] == prompt
    assert choice.message.content == base.tokenizer.decode(said["token_ids"], skip_special_tokens=True)
    assert (choice.message.role, choice.finish_reason, answer.usage.completion_tokens) == ("assistant", "length", 6)
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    content = choice.logprobs.content
    assert len(content) == 6
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in content)
    assert bytes(content[0].bytes).decode() == content[0].token
    again = await client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=2, logprobs=True, extra_body={"return_tokens_as_token_ids": True}
    )
    assert again.choices[0].logprobs.content[0].token.startswith("token_id:")


@pytest.mark.parametrize("extra", [{}, {"n": 2}, {"stop": "e"}, {"logprobs": True, "top_logprobs": 1}])
async def test_a_stream_says_what_the_whole_answer_says(client: Client, extra: dict[str, object]) -> None:
    arguments = {"model": MODEL, "messages": HELLO, "max_tokens": 30, "seed": 4, **extra}
    whole = await client.chat.completions.create(**arguments)
    texts = dict.fromkeys(range(len(whole.choices)), "")
    tokens: dict[int, list[str]] = {index: [] for index in texts}
    reasons = {}
    stream = await client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            tokens[choice.index] += [token.token for token in choice.logprobs.content] if choice.logprobs else []
            reasons |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert reasons[choice.index] == choice.finish_reason
        assert tokens[choice.index] == [t.token for t in choice.logprobs.content] if choice.logprobs else True
    assert chunk.usage.total_tokens == whole.usage.total_tokens


async def test_text_that_must_match(client: Client) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
    )
    assert json.loads(answer.choices[0].message.content)["n"] in (1, 2)
    free = await client.chat.completions.create(
        model=MODEL, messages=HELLO, response_format={"type": "json_object"}, max_tokens=3
    )
    assert free.choices[0].message.content.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 999}, "top_logprobs"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"tools": TOOLS}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"n": 0}, "n"),
        ({"n": -3}, "n"),
        ({"n": 2000}, "n"),
        ({"extra_body": {"chat_template_kwargs": {"chat_template": "{{ x }}"}}}, "chat_template_kwargs.chat_template"),
        ({"stream": True, "extra_body": {"prompt_logprobs": 1}}, "prompt_logprobs"),
        ({"messages": [{"role": "user", "content": "long " * 3000}]}, "messages"),
    ],
)
async def test_refusals_name_the_parameter(client: Client, arguments: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**({"model": MODEL, "messages": HELLO} | arguments))
    assert caught.value.param == param, caught.value


async def test_harmless_parameters_are_taken(client: Client) -> None:
    await client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=1, user="me", metadata={"a": "b"}, store=False, temperature=None,
        top_p=None, service_tier="auto", extra_body={"tools": None, "audio": None},
    )  # fmt: skip


async def test_calls_are_found(scripted: Make) -> None:
    backend = scripted(f"Let me see. {CALL}{CALL}", "No call <tool_call>{oh</tool_call>")
    async with serving(backend) as url, speaking_to(url) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO, n=2, tools=TOOLS)
    first, second = answer.choices
    assert (first.finish_reason, first.message.content) == ("tool_calls", "Let me see. ")
    calls = first.message.tool_calls
    assert [(call.type, call.function.name) for call in calls] == [("function", "weather")] * 2
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Bern"}] * 2
    assert len({call.id for call in calls}) == 2
    assert (second.finish_reason, second.message.tool_calls) == ("stop", None)
    assert second.message.content == "No call <tool_call>{oh</tool_call>"
    assert "weather" in backend.prompt()


async def test_calls_are_streamed(scripted: Make) -> None:
    async with serving(scripted(f"So: {CALL}{CALL}")) as url, speaking_to(url) as client:
        arguments = {"model": MODEL, "messages": HELLO, "tools": TOOLS}
        async with client.chat.completions.stream(**arguments, stream_options={"include_usage": True}) as stream:
            async for _ in stream:
                pass
            answer = await stream.get_final_completion()
    message = answer.choices[0].message
    assert (message.content, answer.choices[0].finish_reason) == ("So: ", "tool_calls")
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"city": "Bern"}] * 2
    assert answer.usage.prompt_tokens_details.cached_tokens == 1


async def test_a_conversation_with_calls_goes_through_the_template(scripted: Make) -> None:
    template = (
        "{%- for m in messages if m.tool_calls %}CALLED {{ m.tool_calls[0].function.arguments.city }} {% endfor %}"
        '{%- for m in messages if m.role == "tool" %}SAID {{ m.content }} {{ m.tool_call_id }} {% endfor %}'
        "{% if tools %}{% endif %}{%- set messages = [] %}"
    )
    backend = scripted("Fine.", template=template)
    async with serving(backend, tool_parser="hermes") as url, speaking_to(url) as client:
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
        messages = [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ]
        answer = await client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
        assert answer.choices[0].message.content == "Fine."
        assert "CALLED Bern SAID rain c1" in backend.prompt()
        call["function"]["arguments"] = "{"
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    assert caught.value.param == "messages[1].tool_calls[0].function.arguments"


async def test_calls_that_must_be_made(scripted: Make) -> None:
    backend = scripted('[{"name": "weather", "parameters": {"city": "Rome"}}]')
    async with serving(backend) as url, speaking_to(url) as client:
        arguments = {"model": MODEL, "messages": HELLO, "tools": TOOLS}
        answer = await client.chat.completions.create(**arguments, tool_choice="required")
        assert json.loads(backend.seen[-1].params.json_schema)["minItems"] == 1
        backend.texts = ['{"city": "Rome"}']
        named = {"type": "function", "function": {"name": "weather"}}
        chosen = await client.chat.completions.create(**arguments, tool_choice=named)
        assert json.loads(backend.seen[-1].params.json_schema) == TOOLS[0]["function"]["parameters"]
        none = await client.chat.completions.create(**arguments, tool_choice="none")
        for bad in ({"type": "function", "function": {"name": "other"}}, "sometimes"):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(**arguments, tool_choice=bad)
            assert caught.value.param.startswith("tool_choice")
    assert (answer.choices[0].finish_reason, chosen.choices[0].finish_reason) == ("tool_calls", "stop")
    for each in (answer, chosen):
        assert each.choices[0].message.tool_calls[0].function.arguments == '{"city": "Rome"}'
    assert none.choices[0].message.content == '{"city": "Rome"}'


async def test_tokens_of_an_earlier_turn_stay_as_they_are(scripted: Make, base: BaseModel) -> None:
    backend = scripted("yes")
    said = base.tokenizer.encode("<|im_start|>user\n") + [base.tokenizer.encode(c)[0] for c in "Hello"]
    assert base.tokenizer.encode(base.tokenizer.decode(said)) != said
    async with serving(backend) as url, speaking_to(url) as client:
        for prefix, stays in ((said, True), ([*said, said[-1]], False)):
            answer = await client.chat.completions.create(
                model=MODEL, messages=HELLO, extra_body={"prefix_token_ids": prefix, "return_token_ids": True}
            )
            prompt = answer.model_dump()["prompt_token_ids"]
            assert (prompt[: len(prefix)] == prefix) is stays
            assert base.tokenizer.decode(prompt) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        with pytest.raises(openai.BadRequestError) as error:
            await client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={"prefix_token_ids": [10**6]})
        assert error.value.param.startswith("prefix_token_ids")


async def test_what_looked_like_a_call_is_told(scripted: Make) -> None:
    backend = scripted("So <tool_call>{oh</tool_call>")
    flat = [{"type": "function", **TOOLS[0]["function"]}]  # as the Responses API has tools
    async with serving(backend) as url, speaking_to(url) as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=HELLO, tools=flat, extra_body={"return_token_ids": True}
        )
        assert answer.choices[0].message.content == "So <tool_call>{oh</tool_call>"
        assert answer.choices[0].model_dump()["tool_call_errors"] == ["<tool_call>{oh</tool_call>"]


async def test_models_without_a_template(scripted: Make) -> None:
    async with serving(scripted("x", template=None)) as url, speaking_to(url) as client:
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert (await client.completions.create(model=MODEL, prompt="x")).choices[0].text == "x"


async def test_a_template_that_refuses(scripted: Make) -> None:
    backend = scripted("x", template="{{ raise_exception('roles must alternate') }}")
    async with serving(backend) as url, speaking_to(url) as client:
        with pytest.raises(openai.BadRequestError, match="roles must alternate"):
            await client.chat.completions.create(model=MODEL, messages=HELLO)


async def test_characters_of_several_tokens_come_whole(scripted: Make, base: BaseModel) -> None:
    text = "🙂 über 中文"
    backend = scripted(text)
    async with serving(backend) as url, speaking_to(url) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        pieces = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


async def test_errors_in_a_stream_reach_the_client(scripted: Make) -> None:
    backend = scripted("a b c d e f", error=ModelError("out of luck", error_class="OSError"))
    async with serving(backend) as url, speaking_to(url) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="out of luck"):
            async for _ in stream:
                pass
    assert backend.num_open == 0


async def test_a_client_that_goes_away_ends_the_stream(scripted: Make) -> None:
    backend = scripted("a b c d e f g h", pause_s=0.2)
    async with serving(backend) as url, speaking_to(url) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        await anext(aiter(stream))
        assert backend.num_open == 1
        await stream.close()
        async with asyncio.timeout(10):
            while backend.num_open:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
