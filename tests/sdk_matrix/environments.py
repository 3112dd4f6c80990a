"""Environments with one version of the `tinker` SDK each, kept from one run to the next."""

import json
import re
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path

KNOWN = "0.38.0"
OLDER = "0.30.4"
_INDEX = "https://pypi.org/pypi/tinker/json"


def newest() -> str:
    """The newest version on the registry that pip would take."""
    command = [sys.executable, "-m", "pip", "index", "versions", "tinker"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    if found := re.match(r"tinker \((\S+)\)", said):
        return found.group(1)
    with urllib.request.urlopen(_INDEX, timeout=30) as answer:
        return str(json.load(answer)["info"]["version"])


def environment(version: str, place: Path) -> Path:
    """The interpreter of an environment with that version, its own requirements, and the torch that is here."""
    folder = place / f"tinker-{version}"
    python = folder / "bin" / "python"
    if (folder / "installed").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = metadata.version("torch").partition("+")[0]
    subprocess.run([*pip, f"tinker=={version}", f"torch=={torch}"], check=True)
    (folder / "installed").touch()
    return python
