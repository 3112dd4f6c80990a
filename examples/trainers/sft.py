"""Supervised fine-tuning: the model learns to name the vowels of a word, and is asked for one that it has not seen.

farstep up                                   # in another terminal, or set FARSTEP_BASE_URL and FARSTEP_API_KEY
python examples/trainers/sft.py              # or: farstep train examples/trainers/sft.py --dry-run
"""

from farstep.trainers import SFTTrainer

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


def row(word):
    return {"prompt": f"vowels {word}", "response": "".join(letter for letter in word if letter in "aeiou")}


def exact(completion, answer):
    return float(completion.strip() == answer.strip())


class Watch:
    def on_checkpoint(self, event, infer):
        print(f"step {event['step']}: vowels orange → {infer('vowels orange', max_tokens=8, temperature=0).completion}")


trainer = SFTTrainer(
    {
        "name": "vowels",
        "model": {"base": "farstep/tiny", "lora": {"r": 16}},
        "epochs": 20,
        "batch_size": 4,
        "optimizer": {"lr": 4e-3},
        "eval_interval": 20,
        "sample_log_count": 2,
        "sampling": {"max_tokens": 8, "greedy": True},
    },
    train_data=[row(word) for word in WORDS],
    test_data=[row(word) for word in ("orange", "paper")],
    reward_fn=exact,
    callbacks=[Watch()],
)

if __name__ == "__main__":
    result = trainer.fit()
    print(f"loss {result.loss:.3f}, accuracy on words not seen {result.accuracy}; {trainer.folder.path}/report.html")
