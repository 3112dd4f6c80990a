"""Checkpoints as clients see them, of a control plane and of a trainer alike: listed, kept, removed, fetched by URL.

A control plane's work with every trainer down. Where the store signs URLs itself (S3), those are handed out. Else they
lead here: a URL says until when it is good and carries an HMAC over that and over the file it names; whoever holds it
may fetch that file and nothing else.
"""

from __future__ import annotations

import asyncio
import builtins
import copy
import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlencode

from farstep_infra.store.checkpoints import CheckpointStore, Manifest, no_checkpoint
from farstep_proto import paths
from farstep_proto.errors import Forbidden, InvalidInput
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import control_pb2
from farstep_serving.keys import OPERATOR, Caller

URL_TTL_S = 3600
PAGE_SIZE = 100


class Checkpoints:
    """A store behind an HTTP server, as a caller sees it: what belongs to others is not there.

    Args:
        secret: signs URLs; who has it can read every checkpoint.
    """

    def __init__(self, store: CheckpointStore, *, secret: str, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._signing_key = hashlib.sha256(b"farstep checkpoint url\0" + secret.encode()).digest()
        self._clock = clock
        self._caller = OPERATOR
        self._owns_unmarked = False

    def seen_by(self, caller: Caller, *, owns_unmarked: bool) -> Checkpoints:
        """The same for another caller; at first it is an operator's.

        Args:
            owns_unmarked: whether those are the caller's that say of no project that they are its.
        """
        seen = copy.copy(self)
        seen._caller, seen._owns_unmarked = caller, owns_unmarked
        return seen

    @property
    def store(self) -> CheckpointStore:
        """All of it, whoever's."""
        return self._store

    async def manifests(self, run_id: str, *, public: bool = False) -> builtins.list[Manifest]:
        """Those of a run's checkpoints that are the caller's, oldest first, or those that are public.

        Raises:
            InvalidInput: not a run id.
        """
        found = await asyncio.to_thread(self._store.list, run_id)
        return [each for each in found if (each.public if public else self._may_see(each.project))]

    async def manifest(self, path: CheckpointPath) -> Manifest:
        """Of one that is the caller's or public.

        Raises:
            NotFound: no such checkpoint.
        """
        await self._check_readable(path)
        return await asyncio.to_thread(self._store.manifest, path)

    async def list(self, run_id: str, *, page: str = "") -> control_pb2.ListCheckpointsResponse:
        """A run's checkpoints, oldest first, `PAGE_SIZE` at a time; `page` is empty or an earlier `next_page`.

        A page begins after the checkpoint that ended the one before it, so that what comes or goes meanwhile moves
        nothing from one page to another.

        Raises:
            InvalidInput: not a run id, or not a page.
        """
        manifests = await self.manifests(run_id)
        after = _position(page)
        left = [manifest for manifest in manifests if after is None or _place(manifest) > after]
        here = left[:PAGE_SIZE]
        return control_pb2.ListCheckpointsResponse(
            checkpoints=[manifest.to_proto() for manifest in here],
            next_page=_page_after(here[-1]) if len(left) > len(here) else "",
        )

    async def get(self, path: CheckpointPath) -> control_pb2.Checkpoint:
        """Raises:
        NotFound: no such checkpoint.
        """
        return (await self.manifest(path)).to_proto()

    async def delete(self, path: CheckpointPath) -> None:
        """Raises:
        NotFound: no such checkpoint.
        """
        await self._check_seen(path)
        await asyncio.to_thread(self._store.delete, path)

    async def set_ttl(self, path: CheckpointPath, ttl_seconds: int | None) -> control_pb2.Checkpoint:
        """The checkpoint, which now expires so many seconds from now; None: never.

        Raises:
            NotFound: no such checkpoint, or it has expired.
            InvalidInput: not a positive number.
        """
        await self._check_seen(path)
        return (await asyncio.to_thread(self._store.set_ttl, path, ttl_seconds)).to_proto()

    async def set_public(self, path: CheckpointPath, *, public: bool) -> None:
        """Lets every project read it, or its own alone.

        Raises:
            NotFound: no such checkpoint, or it has expired.
        """
        await self._check_seen(path)
        await asyncio.to_thread(self._store.set_public, path, public)

    async def archive(self, path: CheckpointPath, *, base_url: str, page: str) -> control_pb2.CheckpointArchive:
        """URLs of a checkpoint's files, `PAGE_SIZE` at a time; `page` is empty or an earlier `next_page`.

        Raises:
            NotFound: no such checkpoint.
            InvalidInput: `page` is not one of this checkpoint's.
        """
        manifest = await self.manifest(path)
        names = sorted(manifest.files)
        start = _page_start(page, len(names))
        archive = control_pb2.CheckpointArchive(
            checkpoint_id=path.checkpoint_id, expires_at=int(self._clock()) + URL_TTL_S
        )
        for name in names[start : start + PAGE_SIZE]:
            file = manifest.files[name]
            archive.files.add(
                name=name,
                url=await asyncio.to_thread(self._store.signed_url, path, name, ttl_s=URL_TTL_S)
                or base_url.rstrip("/") + self._signed(path, name, expires_at=int(archive.expires_at)),
                size_bytes=file.size_bytes,
                sha256=file.sha256,
            )
        if start + PAGE_SIZE < len(names):
            archive.next_page = str(start + PAGE_SIZE)
        return archive

    async def file(self, path: CheckpointPath, name: str, *, expires: str, signature: str) -> Path:
        """Where the file lies that a URL names.

        Raises:
            Forbidden: the URL was not made here, or has expired.
            NotFound: the file is gone.
        """
        expected = self._signature(path, name, expires)
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            raise Forbidden("this URL was not signed by this server")
        if int(expires) <= self._clock():
            raise Forbidden("this URL has expired", hint="ask for the checkpoint's archive again")
        return await asyncio.to_thread(self._store.file_path, path, name)

    async def _check_readable(self, path: CheckpointPath) -> None:
        """As `_check_seen`, but what is public is there for everybody."""
        if not await asyncio.to_thread(self._store.is_public, path):
            await self._check_seen(path)

    async def _check_seen(self, path: CheckpointPath) -> None:
        """Raises NotFound for what is another's, as for what is not there."""
        if self._caller.is_operator:
            return
        project = await asyncio.to_thread(self._store.project_of, path)
        if project is None or not self._may_see(project):
            raise no_checkpoint(path)

    def _may_see(self, project: str) -> bool:
        return self._caller.may_see(project) if project else self._caller.is_operator or self._owns_unmarked

    def _signed(self, path: CheckpointPath, name: str, *, expires_at: int) -> str:
        place = paths.CHECKPOINT_FILE.format(run_id=quote(path.run_id), kind=path.kind, name=path.name, file=name)
        signature = self._signature(path, name, str(expires_at))
        return f"{place}?{urlencode({'expires': expires_at, 'signature': signature})}"

    def _signature(self, path: CheckpointPath, name: str, expires: str) -> str:
        message = f"{path.checkpoint_id}/{name}\n{expires}".encode()
        return hmac.new(self._signing_key, message, hashlib.sha256).hexdigest()


def _place(manifest: Manifest) -> tuple[float, str]:
    return manifest.created_at, manifest.path.checkpoint_id


def _page_after(manifest: Manifest) -> str:
    created_at, checkpoint_id = _place(manifest)
    return f"{created_at!r}~{checkpoint_id}"


def _position(page: str) -> tuple[float, str] | None:
    if not page:
        return None
    created_at, _, checkpoint_id = page.partition("~")
    try:
        return float(created_at), CheckpointPath.from_checkpoint_id(checkpoint_id).checkpoint_id
    except (ValueError, InvalidInput) as error:
        raise InvalidInput(f"{page!r} is not a page of this list", field="page") from error


def _page_start(page: str, num_files: int) -> int:
    if not page:
        return 0
    if not (page.isascii() and page.isdigit()) or not 0 < int(page) < num_files:
        raise InvalidInput(f"{page!r} is not a page of this checkpoint", field="page")
    return int(page)
