"""Projects: who may see what, and how much of it there may be.

A project comes into being when an operator first names it. One that was deleted keeps its name to itself, because its
runs and checkpoints go by that: nobody finds them by taking the name.
"""

from __future__ import annotations

import time

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from farstep_infra.control import quotas
from farstep_infra.control.db import Database, insert_new
from farstep_infra.control.idempotency import Once
from farstep_infra.control.pages import PageRequest, read_page
from farstep_infra.control.scope import find, is_storable, visible
from farstep_infra.control.tables import DEFAULT_PROJECT, KeyRow, ProjectRow
from farstep_proto.errors import Conflict, Forbidden, InvalidInput, NotFound
from farstep_proto.names import check_name
from farstep_proto.v1 import control_pb2
from farstep_serving.keys import OPERATOR, Caller


class Projects:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(
        self, request: control_pb2.CreateProjectRequest, *, caller: Caller, once: Once
    ) -> control_pb2.Project:
        """Raises:
        Forbidden: the caller is no operator.
        InvalidInput: naming the field.
        Conflict: there is one of that name, or was.
        """
        only_operators(caller, "create projects")
        limits = quotas.check(request.quotas)
        check_name(request.project, field="project")
        async with self._db.transaction() as db:
            if earlier := await once.answered(db, control_pb2.Project):
                return earlier
            values = {"project": request.project, "created_at": time.time(), **limits}
            if not await insert_new(db, ProjectRow, **values):
                there = await db.get_one(ProjectRow, request.project)
                how = "exists" if there.deleted_at is None else "was deleted, and its name is not given again"
                raise Conflict(f"project {request.project!r} {how}", field="project", hint="choose another name")
            answer = _to_proto(await db.get_one(ProjectRow, request.project))
            await once.keep(db, answer)
        return answer

    async def get(self, project: str, *, caller: Caller) -> control_pb2.Project:
        """Raises:
        NotFound: there is none that the caller may see.
        """
        async with self._db.reading() as db:
            return _to_proto(await _existing(db, project, caller))

    async def list(self, page: PageRequest, *, caller: Caller) -> control_pb2.ListProjectsResponse:
        """Those that the caller may see, oldest first."""
        query = visible(select(ProjectRow).where(ProjectRow.deleted_at.is_(None)), caller, ProjectRow.project)
        order = (ProjectRow.created_at, ProjectRow.project)
        async with self._db.reading() as db:
            rows, following = await read_page(db, query, order, page)
        return control_pb2.ListProjectsResponse(projects=[_to_proto(row) for row in rows], next_page=following)

    async def set_quotas(self, project: str, request: control_pb2.Project, *, caller: Caller) -> control_pb2.Project:
        """The project with these quotas instead of those that it had; what it has beyond them stays.

        Raises:
            NotFound: there is none that the caller may see.
            Forbidden: the caller is no operator.
            InvalidInput: naming the field.
        """
        limits = quotas.check(request.quotas)
        if request.project not in ("", project):
            raise InvalidInput(f"the path says {project!r}", field="project")
        async with self._db.transaction() as db:
            row = await _existing(db, project, caller, lock=True)
            only_operators(caller, "change quotas")
            for name, limit in limits.items():
                setattr(row, name, limit)
        return _to_proto(row)

    async def delete(self, project: str, *, caller: Caller) -> None:
        """Revokes its keys as well. What it was, its checkpoints too, is left to operators.

        Raises:
            NotFound: there is none that the caller may see.
            Forbidden: the caller is no operator.
            Conflict: it has something that lives, or is the one of who names none.
        """
        async with self._db.transaction() as db:
            row = await _existing(db, project, caller, lock=True)
            only_operators(caller, "delete projects")
            if project == DEFAULT_PROJECT:
                raise Conflict("this project is of those who name none, and stays", field="project")
            if there := quotas.describe(await quotas.live(db, project)):
                hint = "close its sessions and delete its runs first"
                raise Conflict(f"project {project!r} still has {there}", field="project", hint=hint)
            row.deleted_at = time.time()
            its_keys = (KeyRow.project == project, KeyRow.revoked_at.is_(None))
            await db.execute(update(KeyRow).where(*its_keys).values(revoked_at=row.deleted_at))


async def enter(db: AsyncSession, named: str, caller: Caller) -> ProjectRow:
    """The project that something new is to belong to, held until the transaction ends.

    Args:
        named: empty for a project key's own and for an operator's default; an operator's is made where it is not there.

    Raises:
        NotFound: it is not the caller's, or was deleted.
        InvalidInput: it is no name.
    """
    if not caller.is_operator:
        return await _existing(db, named or caller.project, caller, lock=True)
    name = named or DEFAULT_PROJECT
    there = select(ProjectRow.project).where(ProjectRow.project == name)
    if not is_storable(name) or (await db.execute(there)).first() is None:
        await insert_new(db, ProjectRow, project=check_name(name, field="project"), created_at=time.time())
    return await _existing(db, name, OPERATOR, lock=True)


async def hold(db: AsyncSession, project: str) -> ProjectRow:
    """The project of something that is there, held until the transaction ends."""
    return (await db.execute(select(ProjectRow).where(ProjectRow.project == project).with_for_update())).scalar_one()


def only_operators(caller: Caller, what: str) -> None:
    if not caller.is_operator:
        raise Forbidden(f"only operators {what}", hint="use an operator's key")


async def _existing(db: AsyncSession, project: str, caller: Caller, *, lock: bool = False) -> ProjectRow:
    row = await find(db, ProjectRow, project, caller, lock=lock)
    if row is None or row.deleted_at is not None:
        raise NotFound(f"no project {project!r}", field="project")
    return row


def _to_proto(row: ProjectRow) -> control_pb2.Project:
    limits = {name: limit for name in quotas.NAMES if (limit := getattr(row, name)) is not None}
    return control_pb2.Project(project=row.project, quotas=control_pb2.Quotas(**limits), created_at=row.created_at)
