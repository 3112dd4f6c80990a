"""Agents through the proxy, against real servers, with the unmodified openai client."""

import asyncio
import json
import logging

import httpx
import numpy as np
import openai
import pytest

from farstep import AdamParams, Datum
from farstep.rollout import (
    AgentBatch,
    AgentTrajectory,
    AgentTrajectoryTurn,
    LossMaskPolicy,
    RetryPolicy,
    RolloutSession,
    SamplingParams,
    SpanKind,
    ToolFailure,
    spans_of,
)
from farstep.trainers.errors import RolloutError
from farstep.trainers.sequence import aligned

CHAT = [{"role": "user", "content": "12+30?"}]
BATCH = AgentBatch.from_records(
    [{"prompt": "12+30?", "answer": "42"}, {"prompt": "10+11?", "answer": "21"}], n_samples=2
)
NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds", "parameters": NUMBERS}}]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 12, "b": 30}}\n</tool_call>'


def clients(session):
    about = {"base_url": session.base_url, "api_key": session.api_key, "max_retries": 0}
    return openai.OpenAI(**about), openai.AsyncOpenAI(**about)


def saying(*texts):
    """Parameters that leave the policy these texts alone."""
    return {"extra_body": {"structured_outputs": {"choice": list(texts)}}, "max_tokens": 60}


def client_of(ctx):
    return openai.AsyncOpenAI(base_url=ctx.base_url, api_key=ctx.api_key, max_retries=0)


def spans(session, row):
    kinds = [SpanKind(kind) for kind in row.metadata["kinds"]]
    return [(kind.value, session.tokenizer.decode(row.tokens[a:b])) for kind, a, b in spans_of(kinds)]


def trained_text(session, row):
    return [
        session.tokenizer.decode(row.tokens[a:b])
        for _, a, b in spans_of(["+" if weight else "-" for weight in row.loss_mask])
        if row.loss_mask[a]
    ]


async def tool_agent(ctx, batch):
    """Two calls of a tool and an answer."""
    async with client_of(ctx) as client:
        messages = [{"role": "system", "content": "Use tools."}, {"role": "user", "content": batch.item.prompt}]
        for said in ("I add.\n" + CALL, CALL, "It is 42."):
            answer = await client.chat.completions.create(
                model=ctx.model, messages=messages, tools=TOOLS, **saying(said)
            )
            message = answer.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            for call in message.tool_calls or []:
                numbers = json.loads(call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": str(numbers["a"] + numbers["b"])})


def test_the_unmodified_client(run):
    """R6, sync."""
    with RolloutSession(run, proxy=True, sampling_params=SamplingParams(max_new_tokens=7)) as session:
        client, _ = clients(session)
        with client:
            answer = client.chat.completions.create(model="whatever", messages=CHAT, n=2, seed=1)
            assert [choice.index for choice in answer.choices] == [0, 1]
            said = answer.model_dump()
            for choice in said["choices"]:
                assert 1 <= len(choice["token_ids"]) == len(choice["logprobs"]["content"]) <= 7
                assert set(choice["policy_versions"]) == {1}
            assert session.tokenizer.decode(said["prompt_token_ids"]).endswith("<|im_start|>assistant\n")
            again = client.chat.completions.create(model="whatever", messages=CHAT, n=2, seed=1)
            assert [c.message.content for c in again.choices] == [c.message.content for c in answer.choices]
            (model,) = client.models.list().data
            assert model.id == f"{run.run_id}@1"
            assert client.models.retrieve("anything").id == "anything"
            forced = client.chat.completions.create(
                model="m", messages=CHAT, tools=TOOLS, tool_choice="required", max_tokens=200, temperature=0.1
            )
            assert {call.function.name for call in forced.choices[0].message.tool_calls} == {"add"}
            named = {"type": "function", "function": {"name": "add"}}
            for choice in (named, "none", "auto"):
                client.chat.completions.create(model="m", messages=CHAT, tools=TOOLS, tool_choice=choice)
            named["function"]["name"] = "subtract"
            with pytest.raises(openai.BadRequestError, match="none of the tools"):
                client.chat.completions.create(model="m", messages=CHAT, tools=TOOLS, tool_choice=named)
            with pytest.raises(openai.BadRequestError) as refused:
                client.chat.completions.create(model="m", messages=CHAT, temperature=-1)
            assert refused.value.param == "temperature"


async def test_streams(run):
    """R6, async and streaming; a stream says and collects what the whole answer does."""

    async def agent(ctx, batch):
        async with client_of(ctx) as client:
            arguments = {"model": "m", "messages": CHAT, "tools": TOOLS, "seed": 3, **saying("So: " + CALL)}
            whole = await client.chat.completions.create(**arguments)
            async with client.chat.completions.stream(**arguments, stream_options={"include_usage": True}) as stream:
                async for _ in stream:
                    pass
                streamed = await stream.get_final_completion()
            assert streamed.choices[0].message.content == whole.choices[0].message.content == "So: "
            called = streamed.choices[0].message.tool_calls[0].function
            assert (called.name, json.loads(called.arguments)) == ("add", {"a": 12, "b": 30})
            assert streamed.usage.completion_tokens == whole.usage.completion_tokens

    async with RolloutSession(run, proxy=True) as session:
        rollout = await session.run_agents_async(agent, AgentBatch([{}], ["x"]), reward_fn=lambda record: 1)
        whole, streamed = rollout.samples[0].turns
        assert (whole.tokens, whole.prompt, whole.versions) == (streamed.tokens, streamed.prompt, streamed.versions)
        assert whole.logprobs == pytest.approx(streamed.logprobs)
        assert streamed.tool_calls[0]["arguments"] == whole.tool_calls[0]["arguments"]
        assert streamed.finish_reason == "tool_calls"
        # a stream that its reader leaves is no turn
        left = await session.run_agents_async(leaving, AgentBatch([{}], ["x"]))
        assert (left.samples[0].turns, left.samples[0].reason) == ((), "no_turns")


async def leaving(ctx, batch):
    async with client_of(ctx) as client:
        stream = await client.chat.completions.create(
            model="m", messages=CHAT, stream=True, max_tokens=1900, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.close()


def test_what_the_proxy_refuses(run):
    with RolloutSession(run, proxy=True) as session:
        url, key = session.base_url, {"Authorization": f"Bearer {session.api_key}"}
        with httpx.Client(base_url=url, headers=key) as http:
            body = {"model": "m", "messages": CHAT}

            def status(method, path, **given):
                response = http.request(method, path, **given)
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
                return response.status_code

            assert status("POST", "/chat/completions", json=body, headers={"Authorization": "Bearer no"}) == 401
            assert status("POST", "/chat/completions", json=body, headers={"Host": "evil.example:80"}) == 403
            assert status("POST", "/embeddings", json=body) == 404
            assert status("POST", url.replace("/v1", "/s/0-0/v1") + "/chat/completions", json=body) == 404
            assert status("GET", "/chat/completions") == 405
            assert status("POST", "/chat/completions", content=b"{") == 400
            assert status("POST", "/chat/completions", json=[]) == 400
            assert status("POST", "/chat/completions", json={"model": "m"}) == 400
            assert status("POST", "/chat/completions", json={**body, "nonsense": 1}) == 400
        other = session.api_key
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    with RolloutSession(run, proxy=True) as session:
        assert session.api_key != other


async def test_no_room(run):
    """A prompt over the context is an empty answer; so is a turn too many."""

    async def agent(ctx, batch):
        async with client_of(ctx) as client:
            long = [{"role": "user", "content": "12+30?" * 20}]
            first = await client.chat.completions.create(model="m", messages=CHAT)
            empty = await client.chat.completions.create(model="m", messages=long, n=2)
            assert [(c.message.content, c.finish_reason) for c in empty.choices] == [("", "length")] * 2
            chunks = [c async for c in await client.chat.completions.create(model="m", messages=long, stream=True)]
            assert chunks[0].choices[0].finish_reason == "length"
            late = await client.chat.completions.create(model="m", messages=CHAT)
            assert late.choices[0].finish_reason == "length"
            return AgentTrajectory([AgentTrajectoryTurn(None, CHAT, each) for each in (first, empty)], reward=1.0)

    params = SamplingParams(max_new_tokens=20, max_context_len=40)
    async with RolloutSession(run, proxy=True, sampling_params=params, max_turns=3) as session:
        rollout = await session.run_agents_async(agent, AgentBatch([{}], ["x"]))
        (sample,) = rollout.samples
        assert (len(sample.turns), sample.reward) == (1, 1.0)
        assert len(sample.rows[0].tokens) <= 40
        assert rollout.stats.requests == {"context_full": 2, "budget": 1}
        short = SamplingParams(max_prompt_len=5)
        batch = AgentBatch([{}] * 3, ["a", "a prompt of some more words", CHAT])
        rollout = await session.run_agents_async(lambda ctx, batch: 1.0, batch, sampling_params=short)
        assert [sample.reason for sample in rollout.samples] == ["no_turns", "prompt_too_long", "prompt_too_long"]


def test_a_dialogue_with_tools_is_one_row(run):
    """R8 and R11: three turns, one row; the mask is what was sampled, and its log-probabilities are the trainer's."""
    with RolloutSession(run, proxy=True) as session:
        rollout = session.run_agents(
            tool_agent, BATCH, reward_fn=lambda answer, final_answer: float(answer in final_answer)
        )
        assert [sample.reward for sample in rollout.samples] == [1.0, 1.0, 0.0, 0.0]
        for sample in rollout.samples:
            (row,) = sample.rows
            assert sample.num_splits == 0
            found = spans(session, row)
            assert [kind for kind, _ in found] == [
                "system", "user", "context", "assistant_text", "tool_call",
                "context", "tool_result", "context", "tool_call", "context", "tool_result", "context", "final",
            ]  # fmt: skip
            result = "<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n"
            assert [text for kind, text in found if kind != "context"][2:] == [
                "I add.\n", CALL + "<|im_end|>", result, CALL + "<|im_end|>", result, "It is 42.<|im_end|>",
            ]  # fmt: skip
            assert trained_text(session, row) == [
                f"I add.\n{CALL}<|im_end|>", f"{CALL}<|im_end|>", "It is 42.<|im_end|>",
            ]  # fmt: skip
            sampled = [token for turn in sample.turns for token in turn.tokens]
            assert [t for t, weight in zip(row.tokens, row.loss_mask, strict=False) if weight] == sampled
            given = [logprob for logprob, weight in zip(row.logprobs, row.loss_mask, strict=False) if not weight]
            assert set(given) == {0.0}
        stats = rollout.stats
        assert (stats.num_turns, stats.num_tool_calls, stats.num_splits, stats.num_rows) == (12, 8, 0, 4)
        check_record(session, rollout.samples[2].record)


def check_record(session, record):
    assert (record.prompt, record.answer, record.final_answer) == ("10+11?", "21", "It is 42.")
    assert record.completion == "I add.\n\nIt is 42."
    assert record.rendered_completion.startswith(f"I add.\n{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\n42")
    assert record.rendered_completion.endswith("It is 42.<|im_end|>")
    assert [message["role"] for message in record.messages] == [
        "system", "user", "assistant", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert [(call["name"], json.loads(call["arguments"])) for call in record.tool_calls] == [
        ("add", {"a": 12, "b": 30})
    ] * 2
    assert [(result["name"], result["content"]) for result in record.tool_results] == [("add", "42")] * 2
    assert [(event.kind, event.turn) for event in record.trace] == [
        ("message", 0), ("message", 0), ("assistant", 0), ("tool_call", 0), ("tool_result", 1), ("tool_call", 1),
        ("tool_result", 2), ("assistant", 2),
    ]  # fmt: skip
    assert len(record.tokens) == len(record.logprobs) == len(record.loss_mask)
    assert record.source_record == BATCH.records[1]
    expected = {"prompt_index": 1, "sample_index": 0, "num_turns": 3, "num_rows": 1, "policy_version": 1}
    assert expected.items() <= record.metadata.items()
    assert session.tokenizer.decode(record.tokens).startswith("<|im_start|>system\nUse tools.")


@pytest.mark.parametrize(
    ("switch", "trained"),
    [
        ("assistant_text", ["I add.\n"]),
        ("assistant_tool_calls", [CALL + "<|im_end|>"] * 2),
        ("tool_results", ["<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n"] * 2),
        ("final_assistant_text", ["It is 42.<|im_end|>"]),
        ("system_prompt", []),
        ("user_prompt", ["<|im_start|>user\n12+30?<|im_end|>\n"]),
    ],
)
def test_every_switch_of_the_mask(run, switch, trained):
    """R9, on decoded spans; what was given has the policy's own log-probabilities where it is trained."""
    off = dict.fromkeys(LossMaskPolicy.__dataclass_fields__, False)
    with RolloutSession(run, proxy=True, loss_mask_policy=LossMaskPolicy(**{**off, switch: True})) as session:
        batch = AgentBatch([{}], ["12+30?"])
        (row,) = session.run_agents(tool_agent, batch, reward_fn=lambda record: 1).rows
        texts = trained_text(session, row)
    if switch == "system_prompt":
        assert len(texts) == 1
        assert texts[0].startswith("system\nUse tools.\n{")  # token 0 is predicted from nothing
        assert texts[0].endswith("</tool_call><|im_end|>\n")
    else:
        assert texts == trained
    output = run.forward([row.to_datum(targets="all")]).result()
    logprobs = aligned(output.loss_fn_outputs[0]["logprobs"].to_numpy())
    mask = np.asarray(row.loss_mask, dtype=bool)
    if switch in ("tool_results", "system_prompt", "user_prompt"):  # the others were sampled from a grammar
        assert np.abs(logprobs - row.logprobs)[mask].max() < 1e-4


def test_what_a_template_rewrites_splits_the_row(run):
    """R8: thoughts of earlier answers are left out, so the second turn saw another first answer than was sampled."""

    async def agent(ctx, batch):
        async with client_of(ctx) as client:
            messages = list(CHAT)
            for said in ("<think>hm</think>yes", "no"):
                answer = await client.chat.completions.create(model="m", messages=messages, **saying(said))
                messages += [answer.choices[0].message.model_dump(), *CHAT]

    with RolloutSession(run, proxy=True) as session:
        rollout = session.run_agents(agent, AgentBatch([{}], ["x"]), reward_fn=lambda record: 1)
        first, second = rollout.rows
        assert rollout.stats.num_splits == 1
        assert trained_text(session, first) == ["<think>hm</think>yes<|im_end|>"]
        assert trained_text(session, second) == ["no<|im_end|>"]
        assert [kind for kind, _ in spans(session, second)] == ["user", "context", "user", "context", "final"]
        assert "yes<|im_end|>" in session.tokenizer.decode(second.tokens)


def test_sampled_tokens_are_kept_though_text_has_others(run):
    """A policy may write a text in other tokens than the tokenizer would; at temperature 3 it nearly always does."""

    async def agent(ctx, batch):
        async with client_of(ctx) as client:
            messages = list(CHAT)
            for _ in range(3):
                answer = await client.chat.completions.create(
                    model="m",
                    messages=messages,
                    temperature=3.0,
                    max_tokens=60,
                    extra_body={"structured_outputs": {"regex": "[a-z ]{20}"}},
                )
                messages += [answer.choices[0].message.model_dump(), *CHAT]

    with RolloutSession(run, proxy=True) as session:
        rollout = session.run_agents(agent, AgentBatch([{}], ["x"], n_samples=4), reward_fn=lambda record: 1)
        turns = [turn for sample in rollout.samples for turn in sample.turns]
        usual = [session.tokenizer.encode(turn.text, add_special_tokens=False) for turn in turns]
        assert any(list(turn.tokens[:-1]) != tokens for turn, tokens in zip(turns, usual, strict=False))
        assert (rollout.stats.num_splits, len(rollout.rows)) == (0, 4)


def test_several_choices_of_a_request(run):
    """The one that the dialogue goes on with is continued; the others are rows of their own."""

    async def agent(ctx, batch):
        async with client_of(ctx) as client:
            answer = await client.chat.completions.create(model="m", messages=CHAT, n=3, seed=1, max_tokens=5)
            chosen = [*CHAT, answer.choices[1].message.model_dump(), *CHAT]
            await client.chat.completions.create(model="m", messages=chosen, max_tokens=5)

    with RolloutSession(run, proxy=True) as session:
        rollout = session.run_agents(agent, AgentBatch([{}], ["x"]), reward_fn=lambda record: 1)
        assert len(rollout.samples[0].turns) == 4
        assert len(rollout.rows) == 3
        assert rollout.stats.num_splits == 0


def test_agents_of_every_colour(run):  # noqa: C901 (seven small agents)
    """R10: functions and generators, sync and async; nothing, a number, a turn, a trajectory, lists of them."""

    def ask(item, key, **more):
        with openai.OpenAI(base_url=item.base_url, api_key=key, max_retries=0) as client:
            return client.chat.completions.create(model="m", messages=CHAT, max_tokens=3, **more)

    def nothing(ctx, batch):
        for item in batch.iter_samples():
            ask(item, ctx.api_key)

    def number(ctx, batch):
        ask(batch.item, ctx.api_key)
        return np.float32(0.5)

    def turns(ctx, batch):
        return [AgentTrajectoryTurn(item, CHAT, ask(item, ctx.api_key)) for item in batch.iter_samples()]

    def generator(ctx, batch):
        for item in batch.iter_samples():
            yield AgentTrajectory([AgentTrajectoryTurn(item, CHAT, ask(item, ctx.api_key).model_dump())], reward=2.0)

    async def coroutine(ctx, batch):
        return await asyncio.to_thread(number, ctx, batch)

    async def async_generator(ctx, batch):
        for item in batch.iter_samples():
            await asyncio.to_thread(ask, item, ctx.api_key)
            yield 3

    class Agent:
        def __call__(self, ctx, batch):
            return number(ctx, batch)

    with RolloutSession(run, proxy=True, max_running_prompts=4) as session:
        for agent, size, rewards in (
            (nothing, None, {1.0}), (nothing, 1, {1.0}), (number, 1, {0.5}), (turns, None, {1.0}), (turns, 2, {1.0}),
            (generator, None, {2.0}), (coroutine, 1, {0.5}), (async_generator, 2, {3.0}), (Agent(), 1, {0.5}),
        ):  # fmt: skip
            rollout = session.run_agents(agent, BATCH, reward_fn=lambda record: 1, samples_per_call=size)
            assert len(rollout.rows) == 4, agent
            assert {sample.reward for sample in rollout.samples} == rewards
        for wrong, size in ((lambda ctx, batch: [1, 2, 3], None), (lambda ctx, batch: [1, 2], 1)):
            with pytest.raises(
                RolloutError, match=rf"gave {3 if size is None else 2} trajectories for {size or 4} samples"
            ):
                session.run_agents(wrong, BATCH, samples_per_call=size)
        with pytest.raises(RolloutError, match="gave a str"):
            session.run_agents(lambda ctx, batch: "fine", BATCH)


def test_an_agent_that_fails_loses_nothing_but_its_sample(run):
    tried = []

    def agent(ctx, batch):
        item = batch.item
        tried.append(item.place)
        with openai.OpenAI(base_url=ctx.base_url, api_key=ctx.api_key, max_retries=0) as client:
            client.chat.completions.create(model="m", messages=CHAT, max_tokens=3)
        if item.place == (0, 1):
            raise KeyError("oh")
        if item.place == (1, 0) and tried.count(item.place) == 1:
            raise ToolFailure("the tool is away")
        if item.place == (1, 1):
            ctx.drop(item, "boring")

    with RolloutSession(run, proxy=True, retries=RetryPolicy(tool_failure=1)) as session:
        rollout = session.run_agents(agent, BATCH, reward_fn=lambda record: 1)
        assert [(s.outcome, s.reason) for s in rollout.samples] == [
            ("ok", ""), ("failed", "other"), ("ok", ""), ("dropped", "boring"),
        ]  # fmt: skip
        assert [len(sample.turns) for sample in rollout.samples] == [1, 1, 1, 1]  # of the last attempt alone
        assert isinstance(rollout.failures[0].error, KeyError)
        stats = rollout.stats
        assert (stats.retried, stats.failed, stats.dropped) == ({"tool_failure": 1}, {"other": 1}, {"boring": 1})
        assert (stats.funnel.asked, stats.funnel.sampled, stats.funnel.scored, stats.funnel.trained) == (4, 4, 2, 2)
    with RolloutSession(run, proxy=True, on_failure="reward", failure_reward=-1.0) as session:
        samples = session.run_agents(agent, BATCH, reward_fn=lambda record: 1).samples
        assert (samples[1].outcome, samples[1].reward, len(samples[1].rows)) == ("failed", -1.0, 1)
        assert samples[1].rows[0].reward == -1.0
    raising = RolloutSession(run, proxy=True, on_failure="raise")
    with raising as session, pytest.raises(RolloutError, match="prompt 0, sample 1: KeyError"):
        session.run_agents(agent, BATCH)
    with RolloutSession(run, proxy=True, timeout_s=0.2) as session:

        async def slow(ctx, batch):
            await asyncio.sleep(60)

        with pytest.raises(RolloutError, match=r"BudgetExceeded: timeout_s: .* more than 0\.2 s"):
            session.run_agents(slow, BATCH)


def test_rewards_run_beside_sampling_and_stalls_are_told(run, caplog):
    """Rewards wait for each other, so they run at once; sampling goes on while they wait."""
    asked, seen = [], []
    everybody = asyncio.Event()

    async def agent(ctx, batch):
        asked.append(batch.item.place)
        async with client_of(ctx) as client:
            await client.chat.completions.create(model="m", messages=CHAT, max_tokens=2)

    async def reward(record):
        seen.append(record.metadata["sample_index"])
        if len(seen) == len(BATCH):
            while "waiting for 4" not in caplog.text:  # noqa: ASYNC110 (a log has no event)
                await asyncio.sleep(0.02)
            everybody.set()
        await everybody.wait()
        return len(seen)

    progress = []
    with caplog.at_level(logging.WARNING, "farstep"):
        options = {"stall_warning_s": 0.3, "max_running_prompts": 1, "on_progress": progress.append}
        with RolloutSession(run, proxy=True, **options) as session:
            rollout = session.run_agents(agent, BATCH, reward_fn=reward)
    assert {sample.reward for sample in rollout.samples} == {4.0}
    assert "prompt 1, sample 1: its reward" in caplog.text
    assert (progress[-1].total, progress[-1].sampled, progress[-1].scored) == (4, 4, 4)
    assert max(each.sampled for each in progress if each.scored == 0) == 4
    edges, counts = rollout.stats.reward_histogram(bins=4)
    assert (len(edges), sum(counts)) == (5, 4)


def test_a_policy_in_use_by_an_agent_is_not_changed_under_it(run):
    """A session that goes on with new weights leaves what is under way on the old ones."""
    with RolloutSession(run, proxy=True) as session:

        def agent(ctx, batch):
            with openai.OpenAI(base_url=ctx.base_url, api_key=ctx.api_key, max_retries=0) as client:
                client.chat.completions.create(model="m", messages=CHAT, max_tokens=2)
                run.forward_backward([Datum.from_prompt_completion([1, 40, 41], [60, 61, 2])])
                run.optim_step(AdamParams(learning_rate=2e-2)).result()
                assert session.refresh() == 2
                client.chat.completions.create(model="m", messages=CHAT, max_tokens=2)

        (sample,) = session.run_agents(agent, AgentBatch([{}], ["x"]), reward_fn=lambda record: 1).samples
        assert [set(turn.versions) for turn in sample.turns] == [{1}, {1}]
        later = session.run_agents(lambda ctx, batch: None, AgentBatch([{}], ["x"]))
        assert later.samples[0].reason == "no_turns"
        assert session.rollout_batch(["a"]).samples[0].policy_version == 2
