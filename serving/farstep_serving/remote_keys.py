"""Keys that this server does not hold itself: whose they are, the control plane says, asked by their SHA-256.

The server's own keys need nobody. Of any other key the answer is remembered: that it is good for `GOOD_S`, so that a
revoked one stops within seconds; that it is wrong for `BAD_S`, so that a flood of wrong ones asks little. While the
control plane does not answer, keys that were good within `STALE_S` stay good, and of the others nobody can tell: that
is `Unavailable`, not "wrong".

Invariant: keys themselves are neither kept nor logged nor sent on, and what is kept and asked at once is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import httpx
from google.protobuf.message import DecodeError

from farstep_proto import paths
from farstep_proto.errors import Unauthenticated, Unavailable
from farstep_proto.v1 import control_pb2
from farstep_serving.keys import Caller, KeyRing, Keys, digest_of

log = logging.getLogger(__name__)

GOOD_S = 10.0
BAD_S = 5.0
STALE_S = 3600.0
PAUSE_S = 1.0  # after a question that was not answered
MOST_KNOWN = 4096  # answers of either kind
MOST_ASKING = 8  # questions at once about keys that were never good
_TIMEOUT_S = 3.0

T = TypeVar("T")
Ask = Callable[[bytes], Awaitable[Caller | None]]


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """A control plane and the operator's key that it is asked with."""

    url: str
    key: str = field(repr=False)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ControlAddress | None:
        """The one in FARSTEP_CONTROL_URL, if any; a server without a key of its own is open, and asks nobody."""
        url, key = environment.get("FARSTEP_CONTROL_URL"), environment.get("FARSTEP_API_KEY")
        return cls(url, key) if url and key else None


@contextlib.asynccontextmanager
async def all_keys(ring: KeyRing, control: ControlAddress | None) -> AsyncIterator[Keys]:
    """The server's own keys and, where there is a control plane, those that it knows."""
    if control is None:
        yield ring
        return
    headers = {
        "Authorization": f"Bearer {control.key}",
        "Accept": paths.PROTOBUF,
        "Content-Type": paths.PROTOBUF,
    }
    # The fleet's own control plane: a proxy in the environment is not for it.
    async with httpx.AsyncClient(base_url=control.url, headers=headers, timeout=_TIMEOUT_S, trust_env=False) as client:
        yield RemoteKeys(ring, partial(_ask, client))


@dataclass(frozen=True, slots=True)
class _Good:
    caller: Caller
    asked_at: float


class RemoteKeys:
    """`Keys` beyond a server's own.

    Args:
        ask: whose a key is, by its SHA-256; None where it is nobody's. Raises Unavailable.
    """

    def __init__(self, ring: KeyRing, ask: Ask, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ring = ring
        self._ask = ask
        self._clock = clock
        self._good: OrderedDict[bytes, _Good] = OrderedDict()
        self._bad: OrderedDict[bytes, float] = OrderedDict()  # since when
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._silent_since: float | None = None  # when the control plane last left a question without an answer

    async def identify(self, authorization: str) -> Caller:
        try:
            return await self._ring.identify(authorization)
        except Unauthenticated:
            digest = digest_of(authorization)
            if not digest or self._is_bad(digest):
                raise
        known = self._good.get(digest)
        if known is not None and self._age(known.asked_at) < GOOD_S:
            return known.caller
        try:
            caller = await self._answer(digest, known)
        except Unavailable:
            if known is None or self._age(known.asked_at) >= STALE_S:
                raise
            return known.caller
        if caller is None:
            raise Unauthenticated("wrong key")
        return caller

    async def _answer(self, digest: bytes, known: _Good | None) -> Caller | None:
        """The answer to one question, however many wait for it; raises Unavailable."""
        if digest not in self._asking:
            self._check_may_ask(is_known=known is not None)
            self._asking[digest] = task = asyncio.create_task(self._ask_and_note(digest))
            task.add_done_callback(lambda done: self._end(digest, done))
        if self._silent_since is not None and known is not None:
            raise _unavailable()  # nobody waits for the question that finds out whether it answers again
        return await asyncio.shield(self._asking[digest])

    def _check_may_ask(self, *, is_known: bool) -> None:
        if self._silent_since is not None and self._age(self._silent_since) < PAUSE_S:
            raise _unavailable()
        if not is_known and len(self._asking) >= MOST_ASKING:
            raise Unavailable("too many unknown keys are being looked up", retry_after_s=PAUSE_S)

    async def _ask_and_note(self, digest: bytes) -> Caller | None:
        asked_at = self._clock()
        try:
            caller = await self._ask(digest)
        except Unavailable:
            if self._silent_since is None:
                log.warning("the control plane does not say whose keys are: those that were good lately stay good")
            self._silent_since = self._clock()
            raise
        if self._silent_since is not None:
            log.info("the control plane answers again")
            self._silent_since = None
        if caller is None:
            self._good.pop(digest, None)
            _remember(self._bad, digest, asked_at)
        else:
            _remember(self._good, digest, _Good(caller, asked_at))
        return caller

    def _end(self, digest: bytes, done: asyncio.Task[Caller | None]) -> None:
        del self._asking[digest]
        if not done.cancelled():
            done.exception()  # whoever asked may have gone

    def _is_bad(self, digest: bytes) -> bool:
        since = self._bad.get(digest)
        return since is not None and self._age(since) < BAD_S

    def _age(self, time_s: float) -> float:
        return self._clock() - time_s


def _remember(answers: OrderedDict[bytes, T], digest: bytes, answer: T) -> None:
    answers[digest] = answer
    answers.move_to_end(digest)
    if len(answers) > MOST_KNOWN:
        answers.popitem(last=False)


async def _ask(client: httpx.AsyncClient, digest: bytes) -> Caller | None:
    question = control_pb2.CheckKeyRequest(sha256=digest).SerializeToString()
    try:
        response = await client.post(paths.CHECK_KEY, content=question)
        if response.status_code == 404:
            return None
        response.raise_for_status()
        owner = control_pb2.KeyOwner.FromString(response.content)
    except (httpx.HTTPError, DecodeError) as error:
        raise _unavailable() from error
    return Caller(owner.key_id, owner.project, owner.operator)


def _unavailable() -> Unavailable:
    return Unavailable(
        "whose key this is cannot be told: the control plane does not answer",
        hint="try again; keys that were used lately go on",
        retry_after_s=PAUSE_S,
    )
