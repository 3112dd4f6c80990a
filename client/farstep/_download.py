"""Files by URL onto this machine's disk, each checked against its size and sha256.

A transfer that breaks off goes on where it stopped. Lives on the background loop.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import httpx

from farstep import _progress
from farstep._transport import LOOPBACK, ssl_context
from farstep.checkpoints import ArchiveFile
from farstep.errors import ServerError, TransportError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_ATTEMPTS = 5
_PAUSE_S = 0.5
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_CHUNK_BYTES = 1 << 20


class _Bar(Protocol):
    def __call__(self, num_bytes: int) -> None: ...


async def download(files: Sequence[ArchiveFile], folder: Path) -> None:
    """Raises:
    TransportError: a server does not answer, or breaks off again and again.
    ServerError: what came is not what was promised.
    """
    with _bars(files) as bars:
        for file, advance in zip(files, bars, strict=True):
            await _download(file, folder / file.name, advance)


async def _download(file: ArchiveFile, place: Path, advance: _Bar) -> None:
    digest, num_bytes = hashlib.sha256(), 0
    trust_env = urlsplit(file.url).hostname not in LOOPBACK  # no proxy to this very machine
    async with httpx.AsyncClient(timeout=_TIMEOUT, verify=ssl_context(), trust_env=trust_env) as client:
        with open(place, "wb") as out:  # noqa: ASYNC230 - it takes a chunk at a time
            for attempt in range(_ATTEMPTS):
                headers = {"Range": f"bytes={num_bytes}-"} if num_bytes else {}
                try:
                    async with client.stream("GET", file.url, headers=headers) as response:
                        _check(response, file, is_rest=num_bytes > 0)
                        async for chunk in response.aiter_bytes(_CHUNK_BYTES):
                            out.write(chunk)
                            digest.update(chunk)
                            num_bytes += len(chunk)
                            advance(len(chunk))
                except httpx.TransportError as error:
                    reason = type(error).__name__  # not the error: it holds the signed URL
                    if attempt == _ATTEMPTS - 1:
                        raise TransportError(f"{file.name} broke off {_ATTEMPTS} times ({reason})") from None
                    await asyncio.sleep(_PAUSE_S * 2**attempt)
                    continue
                break
    if num_bytes != file.size_bytes or digest.hexdigest() != file.sha256:
        raise ServerError(
            f"{file.name} came with {num_bytes} bytes and another sha256 than its checkpoint's manifest says",
            hint="the checkpoint was overwritten meanwhile, or is damaged; try again",
        )


def _check(response: httpx.Response, file: ArchiveFile, *, is_rest: bool) -> None:
    if response.status_code != (206 if is_rest else 200):
        raise ServerError(
            f"{file.name} cannot be fetched: HTTP {response.status_code}", hint="its URL may have expired"
        )


@contextmanager
def _bars(files: Sequence[ArchiveFile]) -> Iterator[list[_Bar]]:
    """One for each file, shown where a status line may be."""
    if not _progress.is_shown():
        yield [lambda num_bytes: None for _ in files]
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks = [progress.add_task(file.name, total=file.size_bytes, start=False) for file in files]
        yield [functools.partial(_advance, progress, task) for task in tasks]


def _advance(progress: Progress, task: TaskID, num_bytes: int) -> None:
    progress.start_task(task)  # its rate is counted from its first byte; again does nothing
    progress.advance(task, num_bytes)
