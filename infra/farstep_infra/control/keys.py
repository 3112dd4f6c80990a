"""Keys: made here, told once, kept as SHA-256, and asked after by every server of the installation.

The installation's own key, which is in no table, is an operator's. A project's keys may look at each other and revoke
each other, so that whoever finds one leaked can stop it at once; only operators make keys, so that a leaked one leaves
nothing behind that outlives it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time

from sqlalchemy import ColumnElement, and_, or_, select, update

from farstep_infra.control import requests
from farstep_infra.control.db import Database
from farstep_infra.control.idempotency import Once
from farstep_infra.control.pages import PageRequest, read_page
from farstep_infra.control.projects import enter, only_operators
from farstep_infra.control.scope import find, is_storable, visible
from farstep_infra.control.tables import KeyRow
from farstep_proto.errors import ApiError, InvalidInput, NotFound, Unauthenticated
from farstep_proto.v1 import control_pb2
from farstep_serving.keys import Caller, KeyRing, digest_of, make_key

log = logging.getLogger(__name__)

STATES = ("active", "expired", "revoked")
_USE_NOTED_EVERY_S = 300.0
_HINT_CHARACTERS = 8
_SHA256_BYTES = 32


class IssuedKeys:
    """Args: `own`: the installation's; one that is empty makes everybody an operator."""

    def __init__(self, db: Database, own: KeyRing) -> None:
        self._db = db
        self._own = own

    async def identify(self, authorization: str) -> Caller:
        """Raises:
        Unauthenticated: it carries no key, or one that does not hold, or not any more.
        """
        try:
            return await self._own.identify(authorization)
        except Unauthenticated:
            digest = digest_of(authorization)
            row = await self._of_digest(digest) if digest else None
            if row is None:
                raise
        return _active(row)

    async def holder(self, key_id: str) -> Caller:
        """Who has the key of that id, as long as it holds.

        Raises:
            Unauthenticated: there is none, or it was revoked or has expired.
        """
        async with self._db.reading() as db:
            row = await db.get(KeyRow, key_id) if is_storable(key_id) else None
        if row is None:
            raise Unauthenticated("there is no such key")
        return _active(row)

    def secret(self) -> str:
        """What only who holds the installation's own key can know."""
        return self._own.secret()

    async def check(self, request: control_pb2.CheckKeyRequest, *, caller: Caller) -> control_pb2.KeyOwner:
        """Whose the key of that hash is, for servers that are shown it.

        Raises:
            Forbidden: the caller is no operator.
            InvalidInput: not a SHA-256.
            NotFound: there is none, or none that still holds.
        """
        only_operators(caller, "ask whose a key is")
        if len(request.sha256) != _SHA256_BYTES:
            raise InvalidInput(f"{len(request.sha256)} bytes, not {_SHA256_BYTES}", field="sha256")
        matches = [hmac.compare_digest(request.sha256, known) for known in self._own.digests]
        if any(matches):
            return control_pb2.KeyOwner(operator=True)
        row = await self._of_digest(request.sha256)
        if row is None or _state(row) != "active":
            raise NotFound("no such key", field="sha256")
        return control_pb2.KeyOwner(key_id=row.key_id, project=row.project, operator=row.operator)

    async def create(
        self, request: control_pb2.CreateKeyRequest, *, caller: Caller, once: Once
    ) -> control_pb2.CreatedKey:
        """The key with its secret; asked for again, without it: nobody has it then.

        Raises:
            Forbidden: the caller is no operator.
            InvalidInput: naming the field.
            NotFound: the project was deleted.
        """
        only_operators(caller, "create keys")
        requests.check_key(request)
        secret = make_key()
        async with self._db.transaction() as db:
            if earlier := await once.answered(db, control_pb2.CreatedKey):
                return earlier
            now = time.time()
            row = KeyRow(
                key_id=f"key-{secrets.token_hex(8)}",
                sha256=hashlib.sha256(secret.encode()).digest(),
                name=request.name,
                project="" if request.operator else (await enter(db, request.project, caller)).project,
                operator=request.operator,
                hint=secret[:_HINT_CHARACTERS],
                created_at=now,
                expires_at=now + request.ttl_seconds if request.HasField("ttl_seconds") else None,
            )
            db.add(row)
            created = control_pb2.CreatedKey(key=_to_proto(row))
            await once.keep(db, created)
        created.secret = secret
        return created

    async def list(
        self, page: PageRequest, *, caller: Caller, project: str = "", state: str = ""
    ) -> control_pb2.ListKeysResponse:
        """Those that the caller may see, oldest first."""
        query = visible(select(KeyRow), caller, KeyRow.project)
        if project:
            query = query.where(KeyRow.project == project)
        if state:
            query = query.where(_in_state(state))
        order = (KeyRow.created_at, KeyRow.key_id)
        async with self._db.reading() as db:
            rows, following = await read_page(db, query, order, page)
        return control_pb2.ListKeysResponse(keys=[_to_proto(row) for row in rows], next_page=following)

    async def get(self, key_id: str, *, caller: Caller) -> control_pb2.Key:
        """Raises:
        NotFound: there is none that the caller may see.
        """
        async with self._db.reading() as db:
            row = await find(db, KeyRow, key_id, caller)
        return _to_proto(_found(row, key_id))

    async def revoke(self, key_id: str, *, caller: Caller) -> None:
        """Again does nothing.

        Raises:
            NotFound: there is none that the caller may see.
        """
        async with self._db.transaction() as db:
            row = _found(await find(db, KeyRow, key_id, caller, lock=True), key_id)
            row.revoked_at = row.revoked_at or time.time()

    async def _of_digest(self, digest: bytes) -> KeyRow | None:
        async with self._db.reading() as db:
            row = (await db.execute(select(KeyRow).where(KeyRow.sha256 == digest))).scalar_one_or_none()
        # The index compares hashes, and how long that takes tells nothing of a secret; this says so to the reader.
        if row is None or not hmac.compare_digest(row.sha256, digest):
            return None
        await self._note_use(row)
        return row

    async def _note_use(self, row: KeyRow) -> None:
        now = time.time()
        if row.last_used_at is not None and row.last_used_at > now - _USE_NOTED_EVERY_S:
            return
        try:
            async with self._db.transaction() as db:
                await db.execute(update(KeyRow).where(KeyRow.key_id == row.key_id).values(last_used_at=now))
        except ApiError as error:
            log.warning("the use of %s is not noted: %s", row.key_id, error)


def _active(row: KeyRow) -> Caller:
    """Raises:
    Unauthenticated: it holds no more.
    """
    if (state := _state(row)) != "active":
        raise Unauthenticated(f"this key {'was revoked' if state == 'revoked' else 'has expired'}")
    return Caller(row.key_id, row.project, row.operator)


def _state(row: KeyRow) -> str:
    if row.revoked_at is not None:
        return "revoked"
    return "active" if row.expires_at is None or row.expires_at > time.time() else "expired"


def _in_state(state: str) -> ColumnElement[bool]:
    now = time.time()
    match state:
        case "revoked":
            return KeyRow.revoked_at.is_not(None)
        case "expired":
            return and_(KeyRow.revoked_at.is_(None), KeyRow.expires_at <= now)
    return and_(KeyRow.revoked_at.is_(None), or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > now))


def _found(row: KeyRow | None, key_id: str) -> KeyRow:
    if row is None:
        raise NotFound(f"no key {key_id!r}", field="key_id")
    return row


def _to_proto(row: KeyRow) -> control_pb2.Key:
    return control_pb2.Key(
        key_id=row.key_id,
        name=row.name,
        project=row.project,
        operator=row.operator,
        hint=row.hint,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
