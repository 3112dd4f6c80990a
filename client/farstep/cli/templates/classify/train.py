"""Texts to labels as JSON. The accuracy of an evaluation is the share of answers that parse and have the right label.

farstep check train.py && farstep train train.py
"""

import json

from farstep.trainers import SFTTrainer


def score(completion, answer):
    """1 for the right label in valid JSON, 0 for anything else."""
    try:
        said = json.loads(completion)
    except ValueError:
        return 0.0
    return float(isinstance(said, dict) and said.get("label") == json.loads(answer)["label"])


trainer = SFTTrainer("config.yaml", reward_fn=score)
