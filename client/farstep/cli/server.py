"""Whether a control plane answers, and which: for commands that can do without it."""

from __future__ import annotations

from dataclasses import dataclass

from farstep._loop import run
from farstep.cli.command import PATIENCE_S
from farstep.control import ControlClient
from farstep.errors import FarstepError
from farstep_proto.errors import ApiError


@dataclass(frozen=True, slots=True)
class ServerState:
    """`told`: for people; why it does not answer, where it does not."""

    base_url: str
    answers: bool
    told: str
    version: str = ""
    base_models: tuple[str, ...] = ()


def look() -> ServerState:
    """Asks once, and briefly."""
    try:
        with ControlClient(timeout=PATIENCE_S) as client:
            url = client.base_url
            try:
                status = run(client._requests.status())
            except (FarstepError, ApiError) as error:
                return ServerState(url, answers=False, told=f"{url}: {error}".splitlines()[0])
    except FarstepError as error:
        return ServerState("", answers=False, told=str(error))
    models = tuple(
        sorted({process.base_model for process in status.processes if process.base_model and process.state != "failed"})
    )
    told = f"{url}, version {status.version}" + (f", {', '.join(models)}" if models else "")
    return ServerState(url, True, told, status.version, models)
