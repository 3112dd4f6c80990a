"""All channels of a gateway, one for each server, made when first needed."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from farstep_infra.gateway.channel import Channel
from farstep_infra.gateway.server_http import call, make_client


class Channels:
    """Args: `api_key` is the installation's."""

    def __init__(self, api_key: str) -> None:
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
            channel = self._channels[url] = Channel(url, self._client)
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
