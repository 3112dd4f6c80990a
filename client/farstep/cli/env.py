"""`farstep env`: what is installed here, which devices there are, and whether a server answers. Needs none of it."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from farstep._settings import load_settings
from farstep.cli import command
from farstep.cli.local_stack import default_home
from farstep.cli.output import print_details, print_json
from farstep.cli.server import look
from farstep.errors import FarstepError

EXTRAS = ("tokenizers", "trainers", "data", "worker", "sampler", "infra", "wandb", "s3", "postgres")
_SHOWN = ("torch", "transformers", "peft", "datasets", "pydantic", "numpy", "protobuf", "httpx", "vllm", "openai")
_NVIDIA_SMI_S = 10.0


def main(argv: list[str]) -> int:
    return command.run_here("env", add_arguments, argv, _env)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shows versions, which extras are installed and what others lack, devices, and whether a server answers. It "
        "needs no GPU and no server."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_connection(parser)


def _env(arguments: argparse.Namespace) -> int:
    found = environment()
    if arguments.json:
        print_json(found)
        return 0
    extras = {
        name: "installed" if not lacks else f"lacks {', '.join(lacks)}" for name, lacks in found["extras"].items()
    }
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_mib']:,} MiB)" for gpu in found["devices"]["gpus"])
    print_details(
        {
            "farstep": found["farstep"],
            "python": f"{found['python']} ({found['executable']})",
            "platform": found["platform"],
            **{f"package {name}": text or "not installed" for name, text in found["packages"].items()},
            **{f"extra {name}": text for name, text in extras.items()},
            "devices": gpus or f"no GPU; {found['devices']['cpus']} CPU cores",
            "home": found["home"],
            "key": "set" if found["server"]["has_key"] else "none",
            "server": found["server"]["told"],
        }
    )
    return 0


def environment() -> dict[str, Any]:
    """Everything that `--json` prints; no key."""
    state = look()
    return {
        "farstep": version("farstep"),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _SHOWN},
        "extras": {name: missing_of(name) for name in EXTRAS},
        "devices": {"cpus": os.cpu_count(), "gpus": gpus()},
        "home": str(default_home()),
        "server": {
            "base_url": state.base_url,
            "answers": state.answers,
            "told": state.told,
            "version": state.version or None,
            "base_models": list(state.base_models),
            "has_key": _has_key(),
        },
    }


def missing_of(extra: str) -> list[str]:
    """The packages of an extra that are not installed, of the extras that it is made of as well."""
    missing: set[str] = set()
    for requirement in requires("farstep") or ():
        text, _, marker = requirement.partition(";")
        if f'extra == "{extra}"' not in marker.replace("'", '"') or "sys_platform" in marker:
            continue
        name = "".join(_name_characters(text))
        if name == "farstep":
            for inner in text.partition("[")[2].partition("]")[0].split(","):
                missing.update(missing_of(inner.strip()))
        elif _version(name) is None:
            missing.add(name)
    return sorted(missing)


def _name_characters(text: str) -> list[str]:
    kept = []
    for sign in text.strip():
        if not (sign.isalnum() or sign in "-_."):
            break
        kept.append(sign)
    return kept


def gpus() -> list[dict[str, Any]]:
    """As the driver's own command lists them; none where there is no such command."""
    command_path = shutil.which("nvidia-smi")
    if command_path is None:
        return []
    query = [command_path, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3:
            memory = int(parts[1]) if parts[1].isdecimal() else 0
            found.append({"name": parts[0], "memory_mib": memory, "driver": parts[2]})
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _has_key() -> bool:
    try:
        return load_settings(api_key=None, base_url=None, reuse_from_session_id=None).key.secret is not None
    except FarstepError:
        return False
