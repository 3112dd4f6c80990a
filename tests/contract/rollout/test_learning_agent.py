"""An agent of three turns that learns to call its tool: supervised first, then by its reward alone."""

import httpx
import numpy as np
import pytest

from farstep.trainers import GRPOTrainer, SFTTrainer
from tests.support.trainees import Recorder, settings

TOOLS = [{"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}]
PROMPTS = [{"prompt": f"{word}?"} for word in ("apple", "river")]


def call(number):
    function = {"name": "go", "arguments": {}}
    calls = [{"type": "function", "id": f"c{number}", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def dialogue(prompt, num_calls):
    messages = [{"role": "user", "content": prompt}]
    for number in range(num_calls):
        messages += [call(number), {"role": "tool", "tool_call_id": f"c{number}", "content": "ok"}]
    return {"messages": [*messages, {"role": "assistant", "content": "no"}], "tools": TOOLS}


async def walker(ctx, batch):
    """Goes on as long as the model calls its tool, and has its last word in the third turn."""
    headers = {"Authorization": f"Bearer {ctx.api_key}"}
    async with httpx.AsyncClient(base_url=ctx.base_url, headers=headers, verify=False, timeout=None) as client:
        messages = [{"role": "user", "content": batch.item.prompt}]
        for _ in range(3):
            body = {"model": ctx.model, "messages": messages, "tools": TOOLS}
            answer = (await client.post("/chat/completions", json=body)).raise_for_status().json()
            message = answer["choices"][0]["message"]
            messages.append(message)
            if not message.get("tool_calls"):
                return
            messages += [
                {"role": "tool", "tool_call_id": each["id"], "content": "ok"} for each in message["tool_calls"]
            ]


def calls_made(record):
    """The share of the two calls that there is room for."""
    return min(len(record.tool_calls), 2) / 2


def test_a_tool_agent_of_three_turns_learns_to_call_its_tool(tool_service, tmp_path):
    """The model has never seen a call: it is shown dialogues half of which have two, and says "no" in the others.

    From there the reward alone makes it call. At a temperature of 0.7, so that old log-probabilities are the trainer's.
    """
    base = tool_service.get_server_capabilities().supported_models[0].model_name
    model = {"base": base, "lora": {"r": 8, "seed": 1}}
    data = [dialogue(each["prompt"], calls) for each in PROMPTS for calls in (0, 2)]
    config = settings(
        tmp_path, name="sft", model=model, optimizer={"lr": 1.5e-2}, scheduler={"name": "linear"}, epochs=22
    )
    shown = Recorder()
    SFTTrainer(config, client=tool_service, train_data=data, event_sinks=[shown]).fit()
    config = settings(
        tmp_path,
        name="rl",
        model={**model, "path": shown.of("checkpoint")[-1]["path"]},
        optimizer={"lr": 1e-3},
        batch_size=2,
        max_steps=4,
        sampling={"max_tokens": 40, "temperature": 0.7},
        rl={"group_size": 8},
    )
    events = Recorder()
    trainer = GRPOTrainer(
        config, client=tool_service, train_data=PROMPTS, agent=walker, reward_fn=calls_made, event_sinks=[events]
    )
    trainer.fit()
    rewards = events.values("rollout/reward_mean")
    assert rewards[0] < 0.6
    assert np.mean(rewards[-2:]) > rewards[0] + 0.2
    assert events.values("rollout/turns_mean")[-1] > 2
    assert sum(events.values("rollout/splits")) < 4  # three turns, one row, but where a call was written oddly
    assert events.values("ratio") == pytest.approx([1] * 4, abs=1e-4)
    kinds = {kind for event in events.of("rollout") for row in event.get("rows", ()) for kind in row["kinds"]}
    assert {"system", "user", "tool_call", "tool_result", "final"} <= kinds
    for event in events.of("rollout"):
        for row in event.get("rows", ()):
            trained = {kind for kind, weight in zip(row["kinds"], row["loss_mask"], strict=True) if weight}
            assert trained <= {"assistant_text", "tool_call", "final"}
