"""An agent with a tool, in three turns, and its reward.

The embedded model knows no tools and cannot write calls by itself. So a call is a line of text here, `add(12, 30)`,
and the model is given what it may say (`choice`): it learns what to choose. For a model that knows tools, send `tools`
instead of `structured_outputs`, and read `message["tool_calls"]`; `record.tool_calls` then has them for the reward.
"""

import re

import httpx

CALL = re.compile(r"add\((\d+), (\d+)\)")


def choices(record, results):
    """What may be said next: the right thing, or something else."""
    if len(results) < 2:
        return [f"add({record['a']}, {record['b']})", "I do not know."]
    return [f"It is {results[-1]}.", "I do not know."]


async def run_agent(ctx, batch):
    """One question: two calls (the second looks whether the first was right), then the answer."""
    record, results = batch.item.record, []
    messages = [{"role": "user", "content": record["prompt"]}]
    headers = {"Authorization": f"Bearer {ctx.api_key}"}
    async with httpx.AsyncClient(base_url=ctx.base_url, headers=headers, timeout=None) as client:
        for _ in range(3):
            body = {"model": ctx.model, "messages": messages}
            body["structured_outputs"] = {"choice": choices(record, results)}
            answer = await client.post("chat/completions", json=body)
            answer.raise_for_status()
            said = answer.json()["choices"][0]["message"]["content"]
            messages.append({"role": "assistant", "content": said})
            call = CALL.search(said)
            if call is None:
                return
            results.append(int(call[1]) + int(call[2]))
            messages.append({"role": "user", "content": f"= {results[-1]}"})


def used_its_tool(record):
    """A quarter for each call, half for the right answer at the end."""
    num_calls = sum(bool(CALL.search(each["content"])) for each in record.messages if each["role"] == "assistant")
    return 0.25 * min(num_calls, 2) + 0.5 * (record.answer in record.final_answer and num_calls > 0)
