"""A folder in which programs find, offline, what they would load from a hub: directories named like hub ids."""

import os
import shutil
from pathlib import Path

from farstep_model.embedded import model_dir

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json")


def write_tokenizer(folder: Path, name: str) -> None:
    """The embedded model's tokenizer under a name that programs ask for."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER_FILES:
        shutil.copy(model_dir() / file, place / file)


def tinker_environment(base_url: str, api_key: str, **more: str) -> dict[str, str]:
    """That of a program of the `tinker` SDK which is to talk to an installation of ours, and to nobody else."""
    ours = ("FARSTEP_", "PYTHONPATH", "TINKER_", "HF_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {
        **kept,
        "TINKER_BASE_URL": base_url,
        "TINKER_API_KEY": f"tml-{api_key}",
        "TINKER_TELEMETRY": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        **more,
    }
