"""`ControlClient`: a control plane for those who look after it. It opens no session, and trains and samples nothing."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from farstep import _convert
from farstep._address import Address
from farstep._checkpoint_calls import CheckpointCalls
from farstep._checkpoint_requests import CheckpointRequests
from farstep._connection import Connection
from farstep._control_calls import ControlCalls, checked_run_id
from farstep._control_requests import ControlRequests
from farstep._loop import awaiting, blocking
from farstep._settings import load_settings


class ControlClient(ControlCalls, CheckpointCalls):
    """Speaks to no server before it is asked something.

    Args:
        api_key: else FARSTEP_API_KEY, else the key that `farstep up` wrote for this address.
        base_url: else FARSTEP_BASE_URL, else where `farstep up` runs, else http://127.0.0.1:8787.
        timeout: for how long a request is tried again, in seconds.
    """

    def __init__(self, *, api_key: str | None = None, base_url: str | None = None, timeout: float = 10.0) -> None:
        budget_s = _convert.number("timeout", timeout)
        settings = load_settings(api_key=api_key, base_url=base_url, reuse_from_session_id=None)
        self._connection = Connection.take(Address(settings.base_url), settings.key)
        self._of_control = ControlRequests(self._connection, budget_s=budget_s)
        self._of_checkpoints = CheckpointRequests(self._connection, budget_s=budget_s)

    def _delete_run(self, run_id: str) -> Coroutine[Any, Any, None]:
        """As `ServiceClient.delete_run`."""
        return self._requests.delete_run(checked_run_id(run_id))

    delete_run = blocking(_delete_run)
    delete_run_async = awaiting(_delete_run)

    @property
    def base_url(self) -> str:
        return self._connection.url

    @property
    def _requests(self) -> ControlRequests:
        self._refuse_closed()
        return self._of_control

    @property
    def _checkpoints(self) -> CheckpointRequests:
        return self._of_checkpoints

    async def _release(self) -> None:
        await self._connection.release()

    def __repr__(self) -> str:
        return f"<ControlClient {self._connection.url}>"
