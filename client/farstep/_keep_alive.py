"""A session's sign of life: a heartbeat a minute to its control plane while any of its clients is open here.

Whoever decides what may be put to sleep learns so who still lives. It is quiet about failures, because nothing
depends on one heartbeat; that the session is closed over there is said aloud once, and ends it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import Counter
from typing import TYPE_CHECKING

from farstep import _loop
from farstep._address import Origin
from farstep._settings import ApiKey
from farstep.errors import FarstepError, NotFoundError
from farstep_proto import paths
from farstep_proto.v1 import control_pb2 as pb

if TYPE_CHECKING:
    from farstep._transport import Transport

log = logging.getLogger("farstep")

BEAT_S = 60.0

_alive: dict[tuple[str, str, str | None], KeepAlive] = {}
_lock = threading.Lock()


class KeepAlive:
    """Of one session; `hold` and `release` come in pairs, from any thread."""

    def __init__(self, origin: Origin, key: ApiKey) -> None:
        self._control_url = origin.control_url
        self._session_id = origin.session_id
        self._key = key
        self._runs: Counter[str] = Counter()
        self._is_over = False
        self._beating = _loop.start(self._beat())

    @classmethod
    def hold(cls, origin: Origin, key: ApiKey) -> None:
        """One more client, of `origin.run_id` where there is one."""
        with _lock:
            name = _name(origin, key)
            alive = _alive.get(name)
            if alive is None:
                alive = _alive[name] = cls(origin, key)
            alive._runs[origin.run_id] += 1

    @classmethod
    def release(cls, origin: Origin, key: ApiKey) -> None:
        """One less; the last ends it."""
        with _lock:
            alive = _alive.get(_name(origin, key))
            if alive is None:
                return
            alive._runs -= Counter({origin.run_id: 1})
            if not alive._runs:
                alive._end()
                del _alive[_name(origin, key)]

    @classmethod
    def end(cls, origin: Origin, key: ApiKey) -> None:
        """The session is being closed: no heartbeat more, whoever still holds it."""
        with _lock:
            alive = _alive.get(_name(origin, key))
            if alive is not None:
                alive._end()

    def _end(self) -> None:
        self._is_over = True
        self._beating.cancel()

    async def _beat(self) -> None:
        from farstep._transport import Transport

        transport = Transport(self._control_url, self._key)
        try:
            while not self._is_over:
                await asyncio.sleep(BEAT_S)
                await self._beat_once(transport)
        finally:
            await transport.aclose()

    async def _beat_once(self, transport: Transport) -> None:
        from farstep._transport import Request

        path = paths.of(paths.SESSION_HEARTBEAT, session_id=self._session_id)
        message = pb.HeartbeatRequest(run_ids=sorted(filter(None, self._runs)))
        try:
            await transport.attempt(Request("POST", path, body=message.SerializeToString()), pb.Session)
        except NotFoundError as error:
            self._is_over = True
            if error.field == "session_id":  # else a control plane from before there were heartbeats
                log.warning(
                    "session %s is closed at the control plane: what was started for it alone may have been stopped",
                    self._session_id,
                )
        except FarstepError as error:
            log.debug("a heartbeat of session %s failed: %s", self._session_id, error)


def _name(origin: Origin, key: ApiKey) -> tuple[str, str, str | None]:
    return origin.control_url, origin.session_id, key.secret


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _alive.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
