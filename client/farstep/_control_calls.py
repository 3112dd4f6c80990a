"""The calls about what a control plane keeps: runs, sessions, samplers, projects, keys, usage, logs.

A key of a project sees what is that project's; projects and other people's keys are for an operator's key.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import fields
from datetime import date
from typing import Any, Literal

from farstep import _convert
from farstep._closing import Closing
from farstep._control_requests import ControlRequests
from farstep._loop import awaiting, blocking
from farstep.errors import InvalidInputError, checked
from farstep.records import CreatedKey, KeyInfo, ProjectInfo, Quotas, SamplerInfo, SessionInfo, Usage
from farstep.results import RunInfo
from farstep_proto.names import check_run_id
from farstep_proto.v1 import control_pb2


class ControlCalls(Closing):
    """Of whoever has `_requests`, which refuses to be had where the client is closed or has no control plane."""

    @property
    def _requests(self) -> ControlRequests:
        raise NotImplementedError

    def _list_runs(self) -> Coroutine[Any, Any, list[RunInfo]]:
        """All runs that the control plane knows and the key may see, oldest first."""
        return self._requests.list_runs()

    list_runs = blocking(_list_runs)
    list_runs_async = awaiting(_list_runs)

    def _get_run(self, run_id: str) -> Coroutine[Any, Any, RunInfo]:
        """One run, as the control plane knows it."""
        return self._requests.get_run(checked_run_id(run_id))

    get_run = blocking(_get_run)
    get_run_async = awaiting(_get_run)

    def _deactivate_run(self, run_id: str) -> Coroutine[Any, Any, RunInfo]:
        """Stops the processes that only this run uses, and keeps the run: it goes on when it is next asked for.

        Raises:
            NotFoundError: there is no such run.
            ConflictError: it is in a state in which that cannot be.
        """
        return self._requests.deactivate_run(checked_run_id(run_id))

    deactivate_run = blocking(_deactivate_run)
    deactivate_run_async = awaiting(_deactivate_run)

    def _list_sessions(self) -> Coroutine[Any, Any, list[SessionInfo]]:
        """Sessions, open and closed."""
        return self._requests.list_sessions()

    list_sessions = blocking(_list_sessions)
    list_sessions_async = awaiting(_list_sessions)

    def _list_samplers(self) -> Coroutine[Any, Any, list[SamplerInfo]]:
        """Fresh samplers: those that `create_sampling_client` of a `ServiceClient` had started."""
        return self._requests.list_samplers()

    list_samplers = blocking(_list_samplers)
    list_samplers_async = awaiting(_list_samplers)

    def _get_sampler(self, sampler_id: str) -> Coroutine[Any, Any, SamplerInfo]:
        """Raises:
        NotFoundError: there is none.
        """
        return self._requests.get_sampler(_id("sampler_id", sampler_id))

    get_sampler = blocking(_get_sampler)
    get_sampler_async = awaiting(_get_sampler)

    def _stop_sampler(self, sampler_id: str) -> Coroutine[Any, Any, None]:
        """Ends a fresh sampler, as the end of its session would.

        Raises:
            NotFoundError: there is none.
        """
        return self._requests.stop_sampler(_id("sampler_id", sampler_id))

    stop_sampler = blocking(_stop_sampler)
    stop_sampler_async = awaiting(_stop_sampler)

    def _get_usage(
        self,
        *,
        by: Literal["run", "project"] = "run",
        since: date | None = None,
        until: date | None = None,
        project: str | None = None,
        run_id: str | None = None,
    ) -> Coroutine[Any, Any, list[Usage]]:
        """What was used, summed by run or by project.

        Args:
            since, until: days in UTC, both included; None: from the beginning, until now.
            project, run_id: of these alone.
        """
        if by not in ("run", "project"):
            raise InvalidInputError(f"{by!r} is neither 'run' nor 'project'", field="by")
        run_id = None if run_id is None else checked_run_id(run_id)
        return self._requests.usage(by=by, since=since, until=until, project=project, run_id=run_id)

    get_usage = blocking(_get_usage)
    get_usage_async = awaiting(_get_usage)

    def _list_projects(self) -> Coroutine[Any, Any, list[ProjectInfo]]:
        """Projects; a project's key sees its own."""
        return self._requests.list_projects()

    list_projects = blocking(_list_projects)
    list_projects_async = awaiting(_list_projects)

    def _get_project(self, project: str) -> Coroutine[Any, Any, ProjectInfo]:
        """Raises:
        NotFoundError: there is none.
        """
        return self._requests.get_project(_id("project", project))

    get_project = blocking(_get_project)
    get_project_async = awaiting(_get_project)

    def _create_project(self, project: str, quotas: Quotas | None = None) -> Coroutine[Any, Any, ProjectInfo]:
        """Raises:
        ConflictError: there is one of that name.
        PermissionDeniedError: this is for operators.
        """
        return self._requests.create_project(_id("project", project), _checked_quotas(quotas))

    create_project = blocking(_create_project)
    create_project_async = awaiting(_create_project)

    def _set_quotas(self, project: str, quotas: Quotas) -> Coroutine[Any, Any, ProjectInfo]:
        """Replaces a project's quotas; what it has already is left to it.

        Raises:
            NotFoundError: there is no such project.
            PermissionDeniedError: this is for operators.
        """
        return self._requests.set_quotas(_id("project", project), _checked_quotas(quotas))

    set_quotas = blocking(_set_quotas)
    set_quotas_async = awaiting(_set_quotas)

    def _delete_project(self, project: str) -> Coroutine[Any, Any, None]:
        """Removes a project that has nothing left.

        Raises:
            NotFoundError: there is no such project.
            ConflictError: it is still in use; the message says by what.
            PermissionDeniedError: this is for operators.
        """
        return self._requests.delete_project(_id("project", project))

    delete_project = blocking(_delete_project)
    delete_project_async = awaiting(_delete_project)

    def _list_keys(self) -> Coroutine[Any, Any, list[KeyInfo]]:
        """Keys without their secrets, revoked ones too."""
        return self._requests.list_keys()

    list_keys = blocking(_list_keys)
    list_keys_async = awaiting(_list_keys)

    def _create_key(
        self,
        name: str = "",
        *,
        project: str | None = None,
        operator: bool = False,
        ttl_seconds: int | None = None,
    ) -> Coroutine[Any, Any, CreatedKey]:
        """A new key; its secret is told this once.

        Args:
            name: for people.
            project: what it may see.
            operator: instead: every project, and what only operators do.
            ttl_seconds: how long it is good for; None: until it is revoked.

        Raises:
            InvalidInputError: naming the argument.
            NotFoundError: there is no such project.
            PermissionDeniedError: this is for operators.
        """
        if operator and project:
            raise InvalidInputError("an operator's key is of no project: give one of both", field="project")
        request = control_pb2.CreateKeyRequest(
            name=name, project=project or "", operator=operator, ttl_seconds=_convert.ttl(ttl_seconds)
        )
        return self._requests.create_key(request)

    create_key = blocking(_create_key)
    create_key_async = awaiting(_create_key)

    def _revoke_key(self, key_id: str) -> Coroutine[Any, Any, None]:
        """Ends a key, on every server within seconds. It stays listed.

        Raises:
            NotFoundError: there is none of that id.
        """
        return self._requests.revoke_key(_id("key_id", key_id))

    revoke_key = blocking(_revoke_key)
    revoke_key_async = awaiting(_revoke_key)

    def _read_log(self, name: str, *, tail: int | None = None) -> Coroutine[Any, Any, str]:
        """What a process of the control plane has written, the last `tail` lines of it.

        Args:
            name: as `farstep status` shows it, such as "trainer-1".

        Raises:
            NotFoundError: there is no such process.
        """
        tail = None if tail is None else _convert.whole_number("tail", tail, at_least=1)
        return self._requests.read_log(_id("name", name), tail=tail)

    read_log = blocking(_read_log)
    read_log_async = awaiting(_read_log)


def checked_run_id(run_id: str) -> str:
    """Raises InvalidInputError."""
    with checked():
        return check_run_id(run_id)


def _id(field: str, value: str) -> str:
    """Any text that can be a part of a path; what it names is for the server to know."""
    if not isinstance(value, str):
        raise TypeError(f"{field}: must be text, not {type(value).__name__}")
    if not value or value in (".", "..") or not value.isprintable() or len(value) > 256:
        raise InvalidInputError(f"{value[:80]!r} is none", field=field)
    return value


def _checked_quotas(quotas: Quotas | None) -> Quotas:
    quotas = quotas or Quotas()
    for limit in fields(quotas):
        value = getattr(quotas, limit.name)
        if value is not None:
            _convert.whole_number(limit.name, value, at_least=0)
    return quotas
