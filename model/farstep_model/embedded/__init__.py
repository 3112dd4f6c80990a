"""The embedded model: a tiny causal LM shipped with the package, so that everything runs without a download.

This module only says where it lies, and loads no torch. `corpus` is what the model was trained on, `pretrain` the
script that makes the weights.
"""

from pathlib import Path

MODEL_NAME = "farstep/tiny"

__all__ = ["MODEL_NAME", "model_dir"]


def model_dir() -> Path:
    """Return the folder with the weights, the config and the tokenizer, in the layout transformers loads."""
    return Path(__file__).parent / "weights"
