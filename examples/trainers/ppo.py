"""PPO: a critic learns what an answer is worth before the actor moves, and two passes are made over each rollout.

python examples/trainers/ppo.py              # or: farstep train examples/trainers/ppo.py --dry-run
"""

from farstep.trainers import PPOTrainer

NUMBERS = (12, 25, 38, 47, 51, 64, 76, 93)


def ones(completion):
    """The share of an answer that is the digit 1."""
    return completion.count("1") / max(len(completion), 1)


def show(event):
    print(event["step"], f"reward {event['rollout/reward_mean']:.2f}")


trainer = PPOTrainer(
    {
        "name": "ones",
        "model": {"base": "farstep/tiny", "lora": {"r": 8}},
        "max_steps": 16,
        "batch_size": 8,
        "optimizer": {"lr": 1e-2},
        "rl": {"group_size": 8, "updates_per_rollout": 2, "critic": {"warmup_steps": 2, "lr": 1e-2}},
        "sampling": {"max_tokens": 4, "ignore_eos": True},
    },
    train_data=[{"prompt": f"{number}+{number}?"} for number in NUMBERS],
    reward_fn=ones,
    callbacks=[{"on_log": show}],
)

if __name__ == "__main__":
    trainer.fit()
