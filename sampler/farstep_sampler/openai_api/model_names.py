"""What the name of a model means: the base model, a checkpoint, a run's newest policy, or exactly one of them.

    farstep/tiny                          the base model, under its own name or another that it is served by
    bt://loops:<run>/sampler_weights/<n>  a checkpoint; tinker://… as well
    <run>                                 the run's newest policy
    <run>@<version>                       exactly that version; 0 is the base model

Nothing is loaded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from farstep_proto.errors import InvalidInput
from farstep_proto.names import CheckpointPath, is_run_id
from farstep_proto.paths import EXACT_POLICY_VERSION, MIN_POLICY_VERSION
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.openai_api.errors import NoSuchModel
from farstep_sampler.request import version_of
from farstep_sampler.versions import AtLeast, Exactly, VersionGate


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What to sample: a run, a checkpoint, or the base model where both are empty."""

    run_id: str
    model_path: str
    gate: VersionGate


def choose_model(
    name: str, *, base: Sequence[str], policies: Sequence[pb.PolicyState], gate: VersionGate
) -> ModelChoice:
    """What a name means, together with the gate of the request's headers.

    Args:
        base: the names of the base model.

    Raises:
        NoSuchModel: nothing here has that name.
        InvalidInput: the name and the headers ask for different versions.
    """
    if name in base:
        return ModelChoice("", "", gate)
    if "://" in name:
        try:
            return ModelChoice("", str(CheckpointPath.parse(name)), gate)
        except InvalidInput as error:
            raise NoSuchModel(name, hint=error.hint or error.message) from error
    run_id, _, version = name.partition("@")
    # A run that a request waits for may be one that nobody has heard of yet.
    is_known = gate != AtLeast(0) or any(policy.run_id == run_id for policy in policies)
    if not is_run_id(run_id) or not is_known:
        raise NoSuchModel(name, hint=f"GET /v1/models lists what there is, {base[0]} among it")
    if "@" not in name:
        return ModelChoice(run_id, "", gate)
    try:
        exactly = Exactly(version_of(version, "model"))
    except InvalidInput as error:
        raise NoSuchModel(name, hint="<run_id>@<version>, with a number") from error
    if gate not in (AtLeast(0), exactly):
        raise InvalidInput(
            f"the name asks for another version than {EXACT_POLICY_VERSION} or {MIN_POLICY_VERSION}", field="model"
        )
    return ModelChoice(run_id, "", exactly)


def list_models(
    base: Sequence[str], policies: Sequence[pb.PolicyState], *, created: int, max_model_len: int
) -> list[dict[str, Any]]:
    """All names that can be used now: of the base model, of checkpoints and runs, and of each resident version."""
    names: list[tuple[str, str | None]] = [(name, None) for name in base]
    for policy in policies:
        if policy.model_path:
            names.append((policy.model_path, base[0]))
        else:
            names.append((policy.run_id, base[0]))
            names += [(f"{policy.run_id}@{version}", policy.run_id) for version in sorted(policy.resident_versions)]
    return [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "farstep",
            "root": base[0],
            "parent": parent,
            "max_model_len": max_model_len,
        }
        for name, parent in names
    ]
