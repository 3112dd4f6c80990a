"""Rows and configurations for the tests of trainers, on the embedded model."""

import random

from farstep.trainers import TrainSequence


def rows(count, *, seed=0, prompt=(4, 6), answer=(2, 5)):
    """Sequences of unequal lengths, with unequal numbers of targets."""
    draw = random.Random(seed)

    def tokens(bounds):
        return [draw.randrange(20, 900) for _ in range(draw.randint(*bounds))]

    return [TrainSequence.from_prompt_completion(tokens(prompt), tokens(answer)) for _ in range(count)]


def pairs(count, *, seed=0):
    """Chosen and rejected answers to the same prompt."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = [draw.randrange(20, 900) for _ in range(4)]
        answers = [[draw.randrange(20, 900) for _ in range(draw.randint(2, 4))] for _ in range(2)]
        made.append([TrainSequence.from_prompt_completion(prompt, answer) for answer in answers])
    return made


def settings(output_dir, **changes):
    return {
        "name": "run",
        "model": {"base": "farstep/tiny", "lora": {"r": 4, "seed": 1}},
        "optimizer": {"lr": 5e-3},
        "scheduler": {"name": "constant"},
        "batch_size": 4,
        "output_dir": str(output_dir),
        **changes,
    }


class Recorder(list):
    """An event sink: the events, and what one asks of them."""

    def __call__(self, event):
        self.append(event)

    def of(self, kind):
        return [event for event in self if event["type"] == kind]

    def values(self, name, kind="log"):
        return [event[name] for event in self.of(kind)]
