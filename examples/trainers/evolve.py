"""Evolution: rounds of making data, training on it, and judging, until it is good enough. Weights go on.

python examples/trainers/evolve.py
"""

import argparse

from farstep import ServiceClient
from farstep.trainers import SFTTrainer
from farstep.trainers.evolution import Evolution, TrainerStrategy

WORDS = ["apple", "river", "stone", "cloud", "tiger", "lemon", "piano", "garden"]
arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("--rounds", type=int, default=6)
arguments.add_argument("--epochs", type=int, default=12)
options = arguments.parse_args()
service = ServiceClient()


def row(word):
    return {"prompt": f"first letter of {word}", "response": word[0]}


def make_trainer(given):
    model = {"base": "farstep/tiny", "path": given.path, "lora": {"r": 8}}
    config = {"name": f"round-{given.epoch}", "model": model, "epochs": options.epochs, "batch_size": 4}
    config |= {"optimizer": {"lr": 4e-3}, "sampling": {"max_tokens": 4, "greedy": True}}
    return SFTTrainer(config, client=service, train_data=list(given.rows), reward_fn=exact)


def exact(completion, answer):
    return float(completion.strip() == answer.strip())


def more(epoch, rows):
    """Two words more in each round."""
    return [row(word) for word in WORDS[: 2 * epoch + 2]]


strategy = TrainerStrategy(make_trainer, synthesize=more, test_data=[row(word) for word in WORDS])
evolution = Evolution(
    strategy,
    {"max_epochs": options.rounds, "early_stop_threshold": 0.99},
    on_epoch=lambda record: print(f"round {record.epoch}: accuracy {record.accuracy:.2f}"),
)
result = evolution.run()
print(f"best in round {result.best_epoch}; stopped early: {result.early_stopped}")
