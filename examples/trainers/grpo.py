"""Reinforcement learning on additions: eight answers to each prompt, each as good as it is better than the others.

python examples/trainers/grpo.py             # or: farstep train examples/trainers/grpo.py --dry-run
"""

import random

from farstep.trainers import GRPOTrainer

draw = random.Random(0)
SUMS = [(draw.randint(10, 79), draw.randint(10, 20)) for _ in range(64)]


def right(completion, answer):
    """Parameters are named after what a sample has: prompt, completion, answer, messages, tool_calls, …"""
    return float(completion.strip().endswith(answer))


trainer = GRPOTrainer(
    {
        "name": "sums",
        "model": {"base": "farstep/tiny", "lora": {"r": 8, "alpha": 16}},
        "max_steps": 12,
        "batch_size": 16,
        "optimizer": {"lr": 4e-3},
        "rl": {"group_size": 8},
        "sampling": {"max_tokens": 32},
    },
    train_data=[{"prompt": [{"role": "user", "content": f"{a}+{b}?"}], "answer": str(a + b)} for a, b in SUMS],
    reward_fn=right,
    callbacks=[{"on_log": lambda event: print(event["step"], f"reward {event['rollout/reward_mean']:.2f}")}],
)

if __name__ == "__main__":
    trainer.fit()
