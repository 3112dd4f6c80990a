"""What there is of runs and their checkpoints for a caller, in the words of the Tinker wire.

Runs are in the control plane's tables, checkpoints in the store. A run that is in no table any more, or was made
elsewhere, is known by its checkpoints. What another project has made public can be looked at, and is in no list.
"""

from __future__ import annotations

import asyncio

from farstep_infra.control.control import Control
from farstep_infra.gateway.records import KnownRun, TrainingRun, run_record, stored_run_record
from farstep_infra.store.archive import Checkpoints
from farstep_infra.store.manifest import Manifest
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.names import CheckpointPath, is_run_id
from farstep_serving.keys import Caller

_LOOK_AT_ONCE = 8  # runs whose checkpoints are being listed


class RunRecords:
    """Args: `caller` is who is to see them."""

    def __init__(self, control: Control, caller: Caller) -> None:
        self._control = control
        self._caller = caller
        self._looking = asyncio.Semaphore(_LOOK_AT_ONCE)

    async def window(self, *, limit: int, offset: int, project: str) -> tuple[list[TrainingRun], int]:
        """Runs, newest first, and how many there are in all."""
        found, total = await self._control.runs.window(limit=limit, offset=offset, caller=self._caller, project=project)
        manifests = await asyncio.gather(*(self._owned(run.run_id, is_known=True) for run, _ in found))
        records = [
            run_record(KnownRun(run, seen_at), its) for (run, seen_at), its in zip(found, manifests, strict=True)
        ]
        return records, total

    async def get(self, run_id: str, *, accessible: bool) -> TrainingRun:
        """Args:
            accessible: also what another's run has made public.

        Raises:
            NotFound: there is none for the caller.
        """
        try:
            run = await self._control.runs.get(run_id, caller=self._caller)
        except NotFound:
            manifests = await self._owned(run_id, is_known=False)
            if accessible and not manifests:
                manifests = await self._public(run_id)
            if not manifests:
                raise no_run(run_id) from None
            return stored_run_record(manifests, base_model=await self.name_of(manifests[-1]))
        session = await self._control.sessions.get(run.session_id, caller=self._caller)
        return run_record(KnownRun(run, session.last_seen_at), await self._owned(run_id, is_known=True))

    async def checkpoints(self, run_id: str) -> list[Manifest]:
        """A run's, oldest first; of another's run, the public ones.

        Raises:
            NotFound: there is no such run for the caller.
        """
        is_known = await self._control.runs.exists(run_id, caller=self._caller)
        manifests = await self._owned(run_id, is_known=is_known)
        if not manifests and not is_known:
            manifests = await self._public(run_id)
            if not manifests:
                raise no_run(run_id)
        return manifests

    async def all_checkpoints(self) -> list[Manifest]:
        """The caller's, of all runs, newest first."""
        run_ids = await asyncio.to_thread(self._control.checkpoints.store.runs)
        known = set(run_ids) if self._caller.is_operator else await self._control.runs.ids(caller=self._caller)
        found = await asyncio.gather(*(self._owned(run_id, is_known=run_id in known) for run_id in run_ids))
        manifests = [manifest for its in found for manifest in its]
        return sorted(manifests, key=lambda each: (each.created_at, each.path.checkpoint_id), reverse=True)

    async def for_change(self, path: CheckpointPath) -> Checkpoints:
        """The checkpoints among which those are the caller's that it may change or delete."""
        is_known = await self._control.runs.exists(path.run_id, caller=self._caller)
        return self._seen(is_known=is_known)

    async def name_of(self, manifest: Manifest) -> str:
        """What clients call the model that a manifest names."""
        return await self._control.runs.model_name(manifest.path.run_id, manifest.to_proto().base_model)

    async def _owned(self, run_id: str, *, is_known: bool) -> list[Manifest]:
        if not is_run_id(run_id):
            return []
        async with self._looking:
            return await self._seen(is_known=is_known).manifests(run_id)

    async def _public(self, run_id: str) -> list[Manifest]:
        return await self._control.checkpoints.manifests(run_id, public=True) if is_run_id(run_id) else []

    def _seen(self, *, is_known: bool) -> Checkpoints:
        return self._control.checkpoints.seen_by(self._caller, owns_unmarked=is_known)


def no_run(run_id: str) -> NotFound:
    return NotFound(f"no training run {run_id!r}", field="training_run_id")


def path_of(run_id: str, kind: str, name: str) -> CheckpointPath:
    """Raises:
    InvalidInput: there can be none of such a name.
    """
    return CheckpointPath.from_checkpoint_id(f"{run_id}/{kind}/{name}")


def path_from(text: str, *, field: str) -> CheckpointPath:
    """From a `tinker://` path, or the same as Farstep writes it.

    Raises:
        InvalidInput: naming the field.
    """
    if not text.startswith(("tinker://", "bt://")):
        hint = "it looks like tinker://<training_run_id>/weights/<name>"
        raise InvalidInput(f"{text[:200]!r} is not a tinker path", field=field, hint=hint)
    return CheckpointPath.parse(text, field=field)
