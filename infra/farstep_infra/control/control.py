"""What a request to the control plane can reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from farstep_infra.control.fleet import Fleet
from farstep_infra.control.projects import Projects
from farstep_infra.control.runs import Runs
from farstep_infra.control.samplers import FreshSamplers
from farstep_infra.control.sessions import Sessions
from farstep_infra.control.shared_samplers import SharedSamplers
from farstep_infra.control.usage import UsageLedger
from farstep_infra.store.archive import Checkpoints


@dataclass(frozen=True, slots=True)
class Control:
    """Everything that lives as long as the server takes requests. Keys are asked before that."""

    base_url: str
    fleet: Fleet
    projects: Projects
    sessions: Sessions
    runs: Runs
    samplers: FreshSamplers
    shared_samplers: SharedSamplers
    checkpoints: Checkpoints
    usage: UsageLedger
    is_ending: Callable[[], bool]  # whether nobody is to wait any more
    custom_losses: bool = False  # whether trainers compute losses that clients send in


def control_of(request: Request) -> Control:
    control = request.app.state.control
    assert isinstance(control, Control)
    return control
