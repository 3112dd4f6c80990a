"""What exists on the servers under fire."""

from __future__ import annotations

from tests.fuzz.campaign import Target
from tests.unit.infra.conftest import Up

IDS = {
    "run_id": ["fuzz"], "name": ["one"], "kind": ["weights", "sampler_weights"], "file": ["adapter_model.safetensors"],
    "operation_id": ["fuzz:1"], "model": ["farstep/tiny"],
}  # fmt: skip


def control_plane(up: Up) -> Target:
    """A session with a run on it, so that there is something to find."""
    session_id = up.session()
    run_id = up.run(session_id)["run_id"]
    ids = {**IDS, "run_id": [run_id], "session_id": [session_id], "sampler_id": ["sampler-0"], "project": ["default"]}
    return Target("control plane", up.url, up.process.pid, up.key, ids)
