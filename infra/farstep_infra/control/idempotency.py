"""A creation that is asked for again is answered again, and done once.

The answer is kept in the transaction that creates the thing: either both are there or neither. Whose key asks is part
of the question, so nobody meets another's answers. No answer is kept with a secret in it.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message
from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from farstep_infra.control.db import insert_new
from farstep_infra.control.tables import AnsweredRow
from farstep_proto import paths
from farstep_proto.errors import Conflict, InvalidInput
from farstep_serving.keys import caller_of

KEPT_S = 24 * 3600.0
_MAX_CHARACTERS = 200

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Once:
    """One question, however often it arrives. Without a `key`, every arrival is a question of its own."""

    key_id: str = ""
    key: str = ""
    fingerprint: bytes = b""

    async def answered(self, db: AsyncSession, kind: type[M]) -> M | None:
        """What was answered before; None for who is the first, and every other waits until its transaction has ended.

        Raises:
            Conflict: the key was used to ask for something else.
        """
        if not self.key:
            return None
        mine = (AnsweredRow.key_id == self.key_id, AnsweredRow.idempotency_key == self.key)
        await db.execute(delete(AnsweredRow).where(*mine, AnsweredRow.created_at < time.time() - KEPT_S))
        row = {"key_id": self.key_id, "idempotency_key": self.key, "fingerprint": self.fingerprint}
        if await insert_new(db, AnsweredRow, **row, answer=b"", created_at=time.time()):
            return None
        earlier = await db.get_one(AnsweredRow, (self.key_id, self.key))
        if earlier.fingerprint != self.fingerprint:
            raise Conflict("this key was used for another request", field=paths.IDEMPOTENCY_KEY, hint="use a new key")
        return kind.FromString(earlier.answer)

    async def keep(self, db: AsyncSession, answer: Message) -> None:
        """Before the transaction ends."""
        if not self.key:
            return
        mine = (AnsweredRow.key_id == self.key_id, AnsweredRow.idempotency_key == self.key)
        await db.execute(update(AnsweredRow).where(*mine).values(answer=answer.SerializeToString()))


def once_of(request: Request, message: Message) -> Once:
    """What a request asks for, by its path and message, under its header.

    Raises:
        InvalidInput: the header is no key.
    """
    key = request.headers.get(paths.IDEMPOTENCY_KEY)
    if key is None:
        return Once()
    if not key or len(key) > _MAX_CHARACTERS or not (key.isascii() and key.isprintable()):
        raise InvalidInput(f"1 to {_MAX_CHARACTERS} printable characters", field=paths.IDEMPOTENCY_KEY)
    asked = hashlib.sha256(f"{request.method} {request.url.path}\n".encode())
    asked.update(message.SerializeToString(deterministic=True))
    return Once(caller_of(request).key_id, key, asked.digest())


async def forget_old_answers(db: AsyncSession) -> None:
    await db.execute(delete(AnsweredRow).where(AnsweredRow.created_at < time.time() - KEPT_S))
