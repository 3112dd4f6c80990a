"""The life of a client: a with-block of either colour, or `close` / `aclose`, ends it once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from farstep._loop import run, run_async
from farstep.errors import ClientClosedError


class Closing(ABC):
    _is_closed = False

    def close(self) -> None:
        """Ends this client and its connections; stops no server."""
        run(self._close())

    async def aclose(self) -> None:
        """As `close`."""
        await run_async(self._close())

    async def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._release()

    @abstractmethod
    async def _release(self) -> None:
        """Gives back what the client holds."""

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise ClientClosedError(f"this {type(self).__name__} was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()
