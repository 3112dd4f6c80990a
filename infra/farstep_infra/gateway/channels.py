"""All channels of a gateway, one for each server, made when first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from farstep_infra.gateway.channel import Channel
from farstep_infra.gateway.server_http import call, make_client
from farstep_proto.v1 import operations_pb2


class Channels:
    """
    Args:
        api_key: the installation's.
        on_outcome: as of a channel.
    """

    def __init__(
        self, api_key: str, *, on_outcome: Callable[[operations_pb2.Operation], None] = lambda operation: None
    ) -> None:
        self._on_outcome = on_outcome
        self._client = make_client(api_key)
        self._channels: dict[str, Channel] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.released = asyncio.Event()  # nobody is to wait any more

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def of(self, url: str) -> Channel:
        """The channel to the server at that address."""
        channel = self._channels.get(url)
        if channel is None:
            channel = self._channels[url] = Channel(url, self._client, on_outcome=self._on_outcome)
            if self.released.is_set():
                channel.release()
            self._tasks.append(asyncio.create_task(channel.run(), name=f"gateway-poll-{url}"))
        return channel

    async def ask(self, method: str, url: str) -> bytes:
        """One request beside all channels; raises as `server_http.call`."""
        return await call(self._client, method, url)

    def release(self) -> None:
        """Lets everybody go who waits, now and later."""
        self.released.set()
        for channel in self._channels.values():
            channel.release()
