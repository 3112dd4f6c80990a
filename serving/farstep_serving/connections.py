"""Connections that cannot be held open, or fed, without end: uvicorn's protocol with the bounds that it leaves out.

uvicorn times an idle connection that was answered before, and nothing else. Here a request's head is bounded in time
and size, and so is whatever comes between the pieces of a body; an answer has to be read; and there are so many
connections at most. What is refused here never reaches the app: a head that is too large is told so (431), the others
are closed. A body's own time is `bodies`' affair, since the app may not want it yet.

Invariant: a connection on which neither side makes progress is closed, in the time that `ConnectionLimits` says.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from farstep_proto import paths
from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import common_pb2

log = logging.getLogger(__name__)

_SPARE_FILES = 256  # for everything but connections
_MOST_CONNECTIONS = 16_384


def _room_for_connections() -> int:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(files // 2, min(files - _SPARE_FILES, _MOST_CONNECTIONS))


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """
    Args:
        max_connections: one more is closed at once.
        head_s: for a request's head, from when it is waited for or begins.
        max_head_bytes: of a head; also of anything else but the body's own bytes, as chunk headers and trailers.
        linger_s: for the rest of a body whose answer is sent.
        stalled_s: for a peer to take anything of an answer.
        max_unread_bytes: of all answers that nobody reads just now; beyond, the one that has stalled longest goes.
    """

    max_connections: int
    head_s: float = 20.0
    max_head_bytes: int = 64 << 10
    linger_s: float = 10.0
    stalled_s: float = 60.0
    max_unread_bytes: int = 256 << 20

    @classmethod
    def of_process(cls) -> ConnectionLimits:
        """As many connections as the process may open files for."""
        return cls(_room_for_connections())


class BoundedHttp(HttpToolsProtocol):
    limits: ConnectionLimits

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(config, server_state, app_state, **kwargs)
        self._other_bytes = 0  # since the last piece of a body, or the last head
        self._is_in_head = True  # a head is waited for, or has begun
        self._is_in_body = False
        self._waits_since = self.loop.time()  # for what comes next, as far as its time is limited
        self.stalled_since = math.inf  # when the peer was last seen not to read; never: it reads
        self._num_unread = 0

    # Coming in

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            log.warning("more than %s connections: one is closed", self.limits.max_connections)
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._other_bytes += len(data)
        super().data_received(data)
        if self._other_bytes > self.limits.max_head_bytes and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._waits_since = self.loop.time()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        self._other_bytes = 0
        self._is_in_head, self._is_in_body = False, True
        super().on_headers_complete()
        if self.parser.should_upgrade():  # to nothing that we speak, and then the parser reads no further
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._other_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    def _refuse(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._say(431, f"a request's head has at most {self.limits.max_head_bytes} bytes")
        else:  # a response may have begun
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._say(400, msg)

    def _say(self, status: int, message: str) -> None:
        """An error that the app does not hear of, as what it would have said."""
        error = common_pb2.Error(error_class=InvalidInput.error_class, message=message, status=status)
        body = json_format.MessageToJson(error, preserving_proto_field_name=True, indent=None).encode()
        head = f"content-type: {paths.JSON}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()

    # Going out

    def on_response_complete(self) -> None:
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        make_room(self.connections, most_bytes=self.limits.max_unread_bytes)

    @property
    def num_unread(self) -> int:
        return self.transport.get_write_buffer_size()

    # Time

    def check(self, now: float) -> None:
        """Ends the connection if it has been waited for long enough."""
        if self._has_stalled(now):
            self.transport.abort()
        elif self._is_answered() and not self.transport.is_closing() and now - self._waits_since > self._patience_s():
            self.transport.close()

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _patience_s(self) -> float:
        if self._is_in_body:
            return self.limits.linger_s
        return self.limits.head_s if self._is_in_head else self.timeout_keep_alive

    def _has_stalled(self, now: float) -> bool:
        unread = self.num_unread
        if not unread:
            self.stalled_since = math.inf
        elif unread < self._num_unread or self.stalled_since == math.inf:
            self.stalled_since = now
        self._num_unread = unread
        return now - self.stalled_since > self.limits.stalled_s


def make_room(connections: Iterable[Any], *, most_bytes: int) -> None:
    """Aborts connections whose answers nobody reads, longest stalled first, until the rest is not more than that."""
    stalled = sorted((each for each in connections if each.num_unread), key=lambda each: each.stalled_since)
    total = sum(each.num_unread for each in stalled)
    for each in stalled:
        if total <= most_bytes:
            return
        log.warning("%s bytes of answers are not read: a connection is closed", total)
        total -= each.num_unread
        each.transport.abort()


def bounded_by(limits: ConnectionLimits) -> type[BoundedHttp]:
    """uvicorn makes protocols of a class."""
    return type("BoundedHttp", (BoundedHttp,), {"limits": limits})
