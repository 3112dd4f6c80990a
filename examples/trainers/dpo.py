"""Preferences: an answer in capitals is chosen over one without. The loss begins at ln 2.

python examples/trainers/dpo.py              # or: farstep train examples/trainers/dpo.py --dry-run
"""

from farstep.trainers import DPOTrainer

WORDS = [
    "apple",
    "river",
    "stone",
    "cloud",
    "tiger",
    "lemon",
    "piano",
    "garden",
    "window",
    "silver",
    "rocket",
    "forest",
]

trainer = DPOTrainer(
    {
        "name": "capitals",
        "model": {"base": "farstep/tiny", "lora": {"r": 8}},
        "epochs": 3,
        "batch_size": 4,
        "optimizer": {"lr": 2e-3},
        "preference": {"beta": 0.1},
    },
    train_data=[{"prompt": f"say {word}", "chosen": word.upper(), "rejected": word} for word in WORDS],
    callbacks=[{"on_log": lambda event: print(event["step"], f"{event['loss']:.4f}", event["accuracy"])}],
)

if __name__ == "__main__":
    trainer.fit()
