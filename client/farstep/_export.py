"""A checkpoint as a folder of this machine: the adapter for peft, or a whole model for transformers.

The folder is filled beside its place and renamed: it is whole or not there. Merging happens in a process of its own,
so that the SDK loads no torch.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from farstep import _progress
from farstep._checkpoint_requests import CheckpointRequests
from farstep.errors import FarstepError, InvalidInputError, MissingExtraError
from farstep_proto.names import CheckpointPath

_PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
_NEEDED = ("torch", "transformers", "peft", "safetensors", "farstep_model")
_TAIL_LINES = 5


@dataclass(frozen=True, slots=True)
class Export:
    """`base_model` None: the one that the checkpoint names."""

    checkpoint: CheckpointPath
    out_dir: Path
    is_merged: bool
    base_model: str | None = None
    dtype: str = "auto"


async def export(requests: CheckpointRequests, wanted: Export) -> Path:
    """The folder; raises as `ServiceClient.export_checkpoint` does."""
    from farstep._download import download

    _check_room(wanted.out_dir)
    if wanted.is_merged:
        _check_extra()
    described = await requests.get(wanted.checkpoint)
    archive = await requests.archive(wanted.checkpoint)
    files = [file for file in archive.files if file.name in _PEFT_FILES]
    if len(files) < len(_PEFT_FILES):
        raise InvalidInputError(f"{wanted.checkpoint} holds no adapter", field="path")
    filling = wanted.out_dir.with_name(f"{wanted.out_dir.name}~{secrets.token_hex(4)}")
    try:
        adapter = filling / "adapter" if wanted.is_merged else filling
        adapter.mkdir(parents=True)
        await download(files, adapter)
        if wanted.is_merged:
            base_model = wanted.base_model or described.base_model
            with _progress.status(f"merging {described.checkpoint_id} into {base_model}"):
                await _merge(adapter, filling / "model", wanted, base_model)
        _put_in_place(filling / "model" if wanted.is_merged else filling, wanted.out_dir)
    except OSError as error:
        raise FarstepError(f"{wanted.out_dir} cannot be written: {error.strerror}") from error
    finally:
        await asyncio.to_thread(shutil.rmtree, filling, ignore_errors=True)
    return wanted.out_dir


async def _merge(adapter: Path, out: Path, wanted: Export, base_model: str) -> None:
    arguments = [f"--adapter={adapter}", f"--base={base_model}", f"--out={out}", f"--dtype={wanted.dtype}"]
    # -P: a file in the user's directory must not shadow a module of the child.
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "farstep_model.merge",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        tail = "\n".join(said.decode(errors="replace").strip().splitlines()[-_TAIL_LINES:])
        raise FarstepError(
            f"{base_model} and the adapter cannot be merged: {tail}", hint="base_model= says where it is"
        )


def _check_room(out_dir: Path) -> None:
    if out_dir.exists() and (not out_dir.is_dir() or os.listdir(out_dir)):
        raise InvalidInputError(f"{out_dir} is there already", field="out_dir", hint="name a folder that is not")
    if not out_dir.name:
        raise InvalidInputError(f"{out_dir} is no folder to write", field="out_dir")


def _put_in_place(folder: Path, out_dir: Path) -> None:
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder, out_dir)  # over an empty folder, too


def _check_extra() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"a merged model needs packages that are not installed here ({', '.join(missing)})",
            hint="pip install 'farstep[worker]', or export as 'peft'",
        )
