"""The adapters that vLLM has, by slot, and the folders it reads them from.

Every load gets a number that is never used again, and with it a name and a folder of its own: under a name it knows,
vLLM would take keys and values computed with other weights from its prefix cache. A folder stays as long as its
adapter, because vLLM may read it again; all of them lie in one folder that goes when the engine is closed, and what a
killed process has left behind goes when the next engine on this machine starts.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import tempfile
from pathlib import Path

import torch
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from farstep_model.adapter import Adapter
from farstep_proto.errors import Internal, InvalidInput
from farstep_sampler.engines.base import not_finite, stopped

# Not the output layer: with an adapter there, vLLM breaks, or is wrong, over a prompt's log-probabilities.
SERVED_KINDS = ("attn", "mlp")
_PREFIX = "farstep-vllm-"
_OWNER = re.compile(re.escape(_PREFIX) + r"(\d+)-")


class VllmAdapters:
    """What is in each slot.

    Args:
        max_rank: vLLM's limit, fixed when it starts.
    """

    def __init__(self, *, max_rank: int) -> None:
        self._max_rank = max_rank
        self._slots: dict[int, LoRARequest] = {}
        self._broken: set[int] = set()
        self._numbers = itertools.count(1)
        self._root: Path | None = None

    def open(self) -> None:
        """Makes the folder for adapters, and removes those of processes that are gone."""
        for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            owner = _OWNER.match(left.name)
            if owner is not None and not Path(f"/proc/{owner[1]}").exists():
                shutil.rmtree(left, ignore_errors=True)
        self._root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))

    def close(self) -> None:
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)

    def get(self, slot: int) -> LoRARequest | None:
        """The adapter in a slot; None in slot 0, which is the base model's.

        Raises:
            ModelError: it was found to compute nothing finite.
        """
        if not slot:
            return None
        if self._slots[slot].lora_int_id in self._broken:
            raise not_finite()
        return self._slots[slot]

    def mark_broken(self, adapter: LoRARequest) -> None:
        """From now on `get` refuses it: its part of the prefix cache cannot be trusted."""
        self._broken.add(adapter.lora_int_id)

    async def load(self, llm: AsyncLLM, slot: int, adapter: Adapter) -> None:
        """Puts an adapter into a slot that nothing uses, in the place of what was there.

        Raises:
            InvalidInput: its rank or a layer is not what vLLM was started for, or vLLM refuses it.
            Internal: the disk is full, or the engine has stopped.
        """
        self._check(adapter)
        number = next(self._numbers)
        request = await asyncio.to_thread(self._write, number, adapter)
        if (old := self._slots.pop(slot, None)) is not None:
            await llm.remove_lora(old.lora_int_id)
            await asyncio.to_thread(shutil.rmtree, old.lora_path, ignore_errors=True)
        try:
            await llm.add_lora(request)
        except EngineDeadError as error:
            raise stopped() from error
        except Exception as error:  # vLLM hands any failure on as a bare Exception with its text
            shutil.rmtree(request.lora_path, ignore_errors=True)
            raise InvalidInput(f"vLLM does not take this adapter: {error}", field="adapter") from error
        self._slots[slot] = request

    def _check(self, adapter: Adapter) -> None:
        if adapter.spec.rank > self._max_rank:
            raise InvalidInput(
                f"rank {adapter.spec.rank} is over the {self._max_rank} that this sampler was started for",
                field="adapter",
                hint=f"start it with --max-lora-rank {adapter.spec.rank} or more",
            )
        if adapter.spec.use_dora:
            raise InvalidInput("vLLM serves no DoRA", field="adapter", hint="use the torch engine")
        if not all(torch.isfinite(parameter).all() for parameter in adapter.parameters()):
            raise InvalidInput("it has weights that are not finite", field="adapter")
        targets = adapter.layers.targets
        for layer in adapter.weights:
            if targets[layer].kind not in SERVED_KINDS:
                raise InvalidInput(
                    f"{targets[layer].name} has an adapter; the vLLM engine serves them in attention and MLP only",
                    field="adapter",
                    hint="use the torch engine, or train with train_unembed=False",
                )

    def _write(self, number: int, adapter: Adapter) -> LoRARequest:
        assert self._root is not None
        folder = self._root / str(number)
        try:
            folder.mkdir()
            for name, content in adapter.files(adapter.layers.base.name).items():
                (folder / name).write_bytes(content)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise Internal(f"cannot write the adapter for vLLM: {error}", hint=f"make room in {self._root}") from error
        return LoRARequest(lora_name=f"adapter-{number}", lora_int_id=number, lora_path=str(folder))
