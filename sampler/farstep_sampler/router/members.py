"""The replicas of a router: they join and leave while it serves, and each is watched from one to the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from farstep_proto.errors import InvalidInput, NotFound
from farstep_sampler.router.link import ReplicaLink

log = logging.getLogger(__name__)

MAX_REPLICAS = 1024

MakeLink = Callable[[str], ReplicaLink]


class Members:
    """Args:
    make_link: a link to the replica of that address.
    on_change: called whenever one of them changes, or they do.
    """

    def __init__(self, make_link: MakeLink, *, on_change: Callable[[], None]) -> None:
        self._make_link = make_link
        self._on_change = on_change
        self._links: dict[str, ReplicaLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[ReplicaLink]:
        return iter(list(self._links.values()))

    def __len__(self) -> int:
        return len(self._links)

    def add(self, url: str) -> ReplicaLink:
        """Has a replica join; one that is there already stays, also where it was about to leave.

        Raises:
            InvalidInput: an address that is none, or one too many.
        """
        url = checked_url(url)
        known = self._links.get(url)
        if known is not None:
            known.is_leaving = False
            self._on_change()
            return known
        if len(self._links) >= MAX_REPLICAS:
            raise InvalidInput(f"{MAX_REPLICAS} replicas are the most", field="url")
        link = self._links[url] = self._make_link(url)
        link.on_change = self._on_change
        self._tasks[url] = asyncio.create_task(link.run(), name=f"the line to {url}")
        self._tasks[url].add_done_callback(_log_end)
        self._on_change()
        return link

    def remove(self, url: str) -> ReplicaLink:
        """Has a replica leave: it is sent nothing new, and is forgotten when what it has in flight is done.

        Raises:
            NotFound: it is not here.
        """
        url = url.rstrip("/")
        link = self._links.get(url)
        if link is None:
            raise NotFound(f"no replica {url!r} here", field="url")
        link.is_leaving = True
        self._on_change()
        return link

    def forget_the_gone(self) -> None:
        """Lets go of those that were to leave and have nothing in flight any more."""
        for url, link in list(self._links.items()):
            if link.is_leaving and link.num_in_flight == 0:
                del self._links[url]
                task = self._tasks.pop(url)
                task.cancel()
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        tasks = [*self._tasks.values(), *self._ending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s has ended", task.get_name(), exc_info=error)


def checked_url(url: str) -> str:
    """Raises InvalidInput for what is no http address of a server."""
    try:
        parts = urlsplit(url.rstrip("/"))
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_good = is_good and not (parts.path or parts.query or parts.fragment) and parts.username is None
    except ValueError:
        is_good = False
    if not is_good:
        raise InvalidInput(f"{url!r} is not the address of a replica, such as http://10.0.0.7:8000", field="url")
    return url.rstrip("/")
