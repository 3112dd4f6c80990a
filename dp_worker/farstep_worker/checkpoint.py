"""Runs to checkpoints and back.

A training checkpoint (`weights`) holds the adapter in PEFT's files, the value head where the run has one, Adam's state,
adapter and head that the run began with unless those were fresh, and in its manifest the counters; a sampler's
(`sampler_weights`), and one for people to download (`external_weights`), holds the adapter alone.

Invariant: loading changes a run wholly or not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from farstep_infra.store.checkpoints import JSON, CheckpointStore, Manifest, no_checkpoint
from farstep_model.adapter import Adapter
from farstep_model.peft_format import CONFIG_FILE, TENSORS_FILE
from farstep_model.spec import LoraSpec
from farstep_model.value_head import ValueHead
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.names import CheckpointPath, Kind
from farstep_worker.runs import RandomStream, Run, fresh_optimizer
from farstep_worker.submission import ImportAdapter, LoadState, Publish, SaveState

OPTIMIZER_FILE = "optimizer.safetensors"
VALUE_HEAD_FILE = "value_head.safetensors"
START_FILE = "start_adapter.safetensors"
START_VALUE_HEAD_FILE = "start_value_head.safetensors"
_TARGETS: Mapping[Kind, str] = {"weights": "trainer", "sampler_weights": "sampler", "external_weights": "external"}


def save_state(
    store: CheckpointStore, run: Run, call: SaveState, *, policy_version: int | None = None
) -> CheckpointPath:
    """Writes all that `load_state` with the optimizer needs to go on, bit for bit.

    `policy_version` is the version that these weights are about to become, where they are published with it.

    Raises:
        Conflict: the name is taken, and `overwrite` is not set.
    """
    path = CheckpointPath(run.config.run_id, "weights", call.name)
    files = {**run.adapter.files(_base_model(run)), OPTIMIZER_FILE: run.optimizer.state_bytes()}
    if run.adapter.value_head is not None:
        files[VALUE_HEAD_FILE] = run.adapter.value_head.to_bytes()
    if run.start_adapter is not None:
        files[START_FILE] = run.start_adapter.to_bytes()
        if run.start_adapter.value_head is not None:
            files[START_VALUE_HEAD_FILE] = run.start_adapter.value_head.to_bytes()
    version = run.policy_version if policy_version is None else policy_version
    meta = _meta(run, path, spec=run.adapter.spec, policy_version=version, metadata=call.metadata)
    if not _is_made(store, path, meta):
        store.write(path, files, meta, overwrite=call.overwrite, ttl_seconds=call.ttl_seconds)
    return path


def save_policy(
    store: CheckpointStore, run: Run, call: Publish, *, policy_version: int, history: str = ""
) -> CheckpointPath:
    """Writes the adapter as the policy that it is about to become, or for people; `history` is that of its number.

    Raises:
        Conflict: the name is taken.
    """
    path = CheckpointPath(run.config.run_id, "external_weights" if call.is_external else "sampler_weights", call.name)
    spec = dataclasses.replace(run.adapter.spec, value_head=False)
    meta = _meta(run, path, spec=spec, policy_version=policy_version, metadata=call.metadata)
    meta |= {"history": history}
    if not _is_made(store, path, meta):
        store.write(path, run.adapter.files(_base_model(run)), meta, ttl_seconds=call.ttl_seconds)
    return path


def import_adapter(store: CheckpointStore, run: Run, call: ImportAdapter) -> CheckpointPath:
    """Keeps an adapter from elsewhere as a training checkpoint at step 0 and as a sampler's, under one name.

    The run itself stays as it is: it lends its id. The adapter's form is its own.

    Raises:
        Conflict: the name is taken.
        InvalidInput: the files are not an adapter of this base model, or hold what is not a finite number.
    """
    given = {TENSORS_FILE: call.tensors, CONFIG_FILE: call.config}
    adapter = Adapter.from_files(run.adapter.layers, given)
    for name, tensor in adapter.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise InvalidInput("it holds NaN or an infinite number", field=name)
    files = adapter.files(_base_model(run))
    kinds: tuple[Kind, ...] = ("sampler_weights", "weights")  # the one that is answered with comes last
    for kind in kinds:
        path = CheckpointPath(run.config.run_id, kind, call.name)
        meta = _meta(run, path, spec=adapter.spec, policy_version=0, metadata={"imported": "true"})
        if not _is_made(store, path, meta):
            store.write(path, files, {**meta, "step": 0})
    return path


def load_state(store: CheckpointStore, run: Run, call: LoadState) -> None:
    """Puts a checkpoint's weights into the run, with or without the optimizer and its counters.

    Without it, Adam begins afresh and the step count at 0, as for a new run; the random stream goes on. Before the
    run's first step, the weights are then those it begins with. With the optimizer, the run goes on where the
    checkpoint's was, and has its beginning. In both cases collected gradients are dropped. Without the optimizer, a
    value head that the run has and the checkpoint lacks is a fresh one, and one that the run lacks is left out.

    Raises:
        NotFound: no such checkpoint, or it is another project's.
        InvalidInput: it is of another base model or of an adapter of another form, or lacks optimizer state or, for
            going on with the optimizer, has a value head that the run lacks or lacks one that it has.
    """
    project = run.config.project
    if project and not store.may_read(call.path, project):  # it loads what its project may see, an operators' run all
        raise no_checkpoint(call.path)
    manifest, files = store.read(call.path)
    _check_base_model(manifest, run)
    adapter = Adapter.from_files(run.adapter.layers, files)
    _check_form(call.path, adapter, run)
    adapter.spec = run.adapter.spec  # the same update; the run's own dropout and choice of layers
    if adapter.spec.value_head:
        adapter.value_head = _value_head(run, files, VALUE_HEAD_FILE)
    optimizer = fresh_optimizer(adapter)
    step, random = 0, run.random
    start_adapter, is_at_start = run.start_adapter, run.is_at_start
    if call.optimizer:
        if OPTIMIZER_FILE not in files:
            raise InvalidInput(f"{call.path} has no optimizer state", field="path", hint="load the weights alone")
        _check_same_heads(call.path, in_checkpoint=VALUE_HEAD_FILE in files, in_run=adapter.spec.value_head)
        optimizer.load_state_bytes(files[OPTIMIZER_FILE])
        step = _int_of(manifest, "step")
        random = RandomStream(_int_of(manifest, "seed"), _int_of(manifest, "draws"))
        start_adapter = _start_adapter(run, files)
        is_at_start = manifest.meta.get("is_at_start") is True
    elif is_at_start:
        start_adapter = None if adapter.is_fresh() else adapter.clone()
    run.adapter, run.optimizer, run.step, run.random, run.gradients = adapter, optimizer, step, random, None
    run.start_adapter, run.is_at_start = start_adapter, is_at_start
    if call.path.run_id == run.config.run_id:  # in a new process: a version number never goes back
        run.policy_version = max(run.policy_version, _int_of(manifest, "policy_version"))


def _is_made(store: CheckpointStore, path: CheckpointPath, meta: Mapping[str, JSON]) -> bool:
    """Whether the checkpoint is there, made by this very operation before the worker was started anew."""
    if "operation" not in meta:
        return False
    try:
        return store.manifest(path).meta.get("operation") == meta["operation"]
    except (NotFound, InvalidInput):
        return False


def _value_head(run: Run, files: Mapping[str, bytes], name: str) -> ValueHead:
    """That in the file; a fresh one where there is no such file."""
    base = run.adapter.layers.base
    return ValueHead.from_bytes(base, files[name], field=name) if name in files else ValueHead.fresh(base)


def _start_adapter(run: Run, files: Mapping[str, bytes]) -> Adapter | None:
    if START_FILE not in files:
        return None
    adapter = Adapter.from_bytes(run.adapter.layers, files[START_FILE])
    if run.adapter.spec.value_head:
        adapter.value_head = _value_head(run, files, START_VALUE_HEAD_FILE)
    return adapter


def _meta(
    run: Run, path: CheckpointPath, *, spec: LoraSpec, policy_version: int, metadata: Mapping[str, str]
) -> dict[str, JSON]:
    made_by: dict[str, JSON] = {"operation": run.operation} if run.operation else {}
    return {
        **made_by,
        "base_model": _base_model(run),
        "lora": {**dataclasses.asdict(spec), "target_modules": list(spec.target_modules)},
        "step": run.step,
        "policy_version": policy_version,
        "project": run.config.project,
        "target": _TARGETS[path.kind],
        "seed": run.random.seed,
        "draws": run.random.draws,
        "is_at_start": run.is_at_start,
        "metadata": dict(metadata),
    }


def _base_model(run: Run) -> str:
    return run.adapter.layers.base.name


def _check_base_model(manifest: Manifest, run: Run) -> None:
    if manifest.meta.get("base_model") != _base_model(run):
        raise InvalidInput(
            f"{manifest.path} is for {manifest.meta.get('base_model')!r}, this trainer serves {_base_model(run)!r}",
            field="path",
        )


def _check_form(path: CheckpointPath, adapter: Adapter, run: Run) -> None:
    hint = "create a run from the checkpoint: it takes over the checkpoint's settings"
    theirs, ours = adapter.spec, run.adapter.spec
    for name in ("rank", "alpha", "use_rslora", "use_dora"):
        there, here = getattr(theirs, name), getattr(ours, name)
        if there != here:
            raise InvalidInput(f"{path} has LoRA {name} {there}, the run has {here}", field="path", hint=hint)
    if adapter.weights.keys() != run.adapter.weights.keys():
        raise InvalidInput(
            f"{path} adapts {_modules(adapter)}, the run adapts {_modules(run.adapter)}", field="path", hint=hint
        )


def _check_same_heads(path: CheckpointPath, *, in_checkpoint: bool, in_run: bool) -> None:
    if in_checkpoint != in_run:
        has, lacks = (path, "the run") if in_checkpoint else ("the run", path)
        raise InvalidInput(
            f"{has} has a value head, {lacks} has none",
            field="path",
            hint="load the weights alone, or create a run from the checkpoint",
        )


def _modules(adapter: Adapter) -> str:
    return ", ".join(adapter.layers.module_names(list(adapter.weights)))


def _int_of(manifest: Manifest, key: str) -> int:
    value = manifest.meta.get(key)
    if not isinstance(value, int):
        raise InvalidInput(f"the manifest of {manifest.path} has no number {key!r}", field="path")
    return value
