"""How a training client comes about: a run is provisioned, made on its trainer or found there, and bound.

What can be wrong with arguments was found before; here every step speaks to a server.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from farstep import _convert, _retry
from farstep._adapter_files import find_adapter
from farstep._connection import Connection
from farstep._provisioning import Place, Provisioner
from farstep._wandb import WandbStream
from farstep._wanted import WantedRun, wanted_run
from farstep.checkpoints import ImportedAdapter
from farstep.errors import InvalidInputError
from farstep.results import LoraConfig
from farstep.training import TrainingClient
from farstep.types import WandbConfig
from farstep_proto import paths
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import training_pb2


async def start_run(provisioner: Provisioner, wanted: WantedRun, wandb_config: WandbConfig | None) -> TrainingClient:
    """A run provisioned, made on its trainer, and bound."""
    place = await provisioner.provision_run(wanted)
    request = training_pb2.CreateRunRequest(
        run_id=place.run_id,
        base_model=place.model or wanted.base_model,
        lora=_convert.lora_to_proto(wanted.lora),
        seed=wanted.seed,
        max_seq_len=wanted.max_seq_len or 0,
        project=place.project,
    )
    if not wanted.with_sampler:
        place = replace(place, sampler=None)
    return await _bind(provisioner, place, request, wandb_config)


async def resume_run(provisioner: Provisioner, run_id: str) -> TrainingClient:
    """A run that a trainer has, wherever that is by now."""
    return await _bind(provisioner, await provisioner.find_run(run_id), None, None)


async def _bind(
    provisioner: Provisioner,
    place: Place,
    request: training_pb2.CreateRunRequest | None,
    wandb_config: WandbConfig | None,
) -> TrainingClient:
    """A client of a run on its trainer: created there by `request`, or there already."""
    trainer = Connection.take(place.trainer, provisioner.key)
    try:
        info = await trainer.load_info(budget_s=_retry.CONNECT_BUDGET_S)
        if request is not None:
            created = await trainer.call("POST", paths.RUNS, training_pb2.Run, message=request)
        else:
            created = await trainer.call("GET", paths.of(paths.RUN, run_id=place.run_id), training_pb2.Run)
        created.base_model = place.base_model or created.base_model
        wandb = None
        if wandb_config is not None:
            wandb = await asyncio.to_thread(WandbStream, wandb_config, run_config=_run_config(created))
    except BaseException:
        await trainer.release()
        raise
    control = provisioner.control
    return TrainingClient(
        trainer,
        created,
        sampler=place.sampler,
        control=control.shared() if control is not None else None,
        wandb=wandb,
        max_request_bytes=info.max_request_bytes,
    )


async def start_from_state(
    provisioner: Provisioner,
    checkpoint: CheckpointPath,
    wanted: WantedRun,
    *,
    optimizer: bool,
    value_head: bool | None,
    wandb_config: WandbConfig | None,
) -> TrainingClient:
    """A run with the model and the adapter of a checkpoint, which is then loaded into it.

    Raises:
        InvalidInputError: a value head where the checkpoint has none, with its optimizer.
    """
    found = await provisioner.checkpoints.get(checkpoint)
    lora = found.lora_adapter_config
    if value_head is not None and value_head != lora.value_head:
        if optimizer:
            raise InvalidInputError(
                "with its optimizer a run has a value head exactly where the checkpoint has one", field="value_head"
            )
        lora = replace(lora, value_head=value_head)
    wanted = replace(wanted, base_model=found.base_model, lora=lora)
    client = await start_run(provisioner, wanted, wandb_config)
    try:
        await (await client._load(str(checkpoint), optimizer=optimizer))
    except BaseException:
        await client._close()
        raise
    return client


async def import_adapter(
    provisioner: Provisioner, adapter: str | Path, name: str, base_model: str | None
) -> ImportedAdapter:
    """An adapter of the user's as a checkpoint, by way of a run that lends it an id."""
    files = await asyncio.to_thread(find_adapter, adapter)
    base_model = base_model or files.base_model
    if not base_model:
        raise InvalidInputError("the adapter's config names none", field="base_model")
    # Its own form comes with the adapter; the run that lends it an id is as small as can be.
    wanted = wanted_run(base_model, LoraConfig(1), name=f"import-{name}"[:128], with_sampler=False)
    client = await start_run(provisioner, wanted, None)
    try:
        path = (await (await client._import(files, name))).path
    finally:
        await client._close()
        await provisioner.delete_run(client.run_id)  # frees its room; checkpoints stay
    kept = replace(CheckpointPath.parse(path), kind="sampler_weights")
    return ImportedAdapter(path, str(kept))


def _run_config(created: training_pb2.Run) -> dict[str, Any]:
    """What is kept with a run's metrics."""
    lora = {f"lora.{name}": value for name, value in asdict(_convert.lora_from_proto(created.lora)).items()}
    return {"run_id": created.run_id, "base_model": created.base_model, "seed": created.seed, **lora}
