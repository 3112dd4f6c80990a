"""An agent in three turns learns to use its tool: two calls, then the answer. The proxy keeps the tokens for it.

The embedded model knows no tools: a call is a line of text here, and it is given what it may say. For one that does,
send `tools` instead of `structured_outputs`, read `message["tool_calls"]`, and see `record.tool_calls` in the reward.

python examples/trainers/tool_agent.py       # or: farstep train examples/trainers/tool_agent.py --dry-run
"""

import re

import httpx

from farstep.trainers import GRPOTrainer

CALL = re.compile(r"add\((\d+), (\d+)\)")
SUMS = [(12, 30), (10, 11), (47, 18), (25, 25), (38, 14), (51, 20), (64, 19), (76, 13)]


async def run_agent(ctx, batch):
    record, results = batch.item.record, []
    messages = [{"role": "user", "content": record["prompt"]}]
    headers = {"Authorization": f"Bearer {ctx.api_key}"}
    async with httpx.AsyncClient(base_url=ctx.base_url, headers=headers, timeout=None) as client:
        for _ in range(3):
            wanted = f"It is {results[-1]}." if len(results) == 2 else "add({a}, {b})".format(**record)
            body = {"model": ctx.model, "messages": messages}
            body["structured_outputs"] = {"choice": [wanted, "I do not know."]}
            answer = (await client.post("chat/completions", json=body)).raise_for_status().json()
            said = answer["choices"][0]["message"]["content"]
            messages.append({"role": "assistant", "content": said})
            if (call := CALL.search(said)) is None:
                return
            results.append(int(call[1]) + int(call[2]))
            messages.append({"role": "user", "content": f"= {results[-1]}"})


def used_its_tool(record):
    """A quarter for each call, half for the right answer at the end."""
    said = [message["content"] for message in record.messages if message["role"] == "assistant"]
    return 0.25 * sum(bool(CALL.search(each)) for each in said[:2]) + 0.5 * (record.answer in record.final_answer)


trainer = GRPOTrainer(
    {"name": "agent", "model": {"base": "farstep/tiny", "lora": {"r": 8}}, "max_steps": 10, "batch_size": 4,
     "optimizer": {"lr": 1e-2}, "rl": {"group_size": 4}},
    train_data=[{"prompt": f"{a}+{b}?", "a": a, "b": b, "answer": str(a + b)} for a, b in SUMS],
    agent=run_agent,
    reward_fn=used_its_tool,
    callbacks=[{"on_log": lambda event: print(event["step"], f"reward {event['rollout/reward_mean']:.2f}")}],
)  # fmt: skip

if __name__ == "__main__":
    trainer.fit()
