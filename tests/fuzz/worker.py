"""One client of the fuzzer: it sends what is wrong, now and then what is right, and takes what comes of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from farstep_proto import paths
from farstep_proto.v1 import operations_pb2, training_pb2
from tests.fuzz.messages import RIGHT
from tests.fuzz.requests import Hostile, Known, Operation, request_of
from tests.fuzz.verdict import Verdicts, is_meant

_BINARY = {"Content-Type": paths.PROTOBUF, "Accept": paths.PROTOBUF}
_POLL_EVERY = 10
_RUN_EVERY = 400
_MOST_COMPLAINTS = 50


@dataclass
class Findings:
    """What came of all requests to one server."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    unavailable: int = 0  # answers from 500 on that are meant
    refused_by_client: int = 0  # what httpx will not send
    dropped: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def server_errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status >= 500) - self.unavailable

    def complain(self, what: str) -> None:
        if len(self.complaints) < _MOST_COMPLAINTS:
            self.complaints.append(what)


def _weight_of(operation: Operation) -> float:
    """Those that take a body have the most to go wrong; those that delete leave nothing to go wrong."""
    if operation.method == "DELETE":
        return 0.1
    return 2.0 if "requestBody" in operation.schema else 0.5


class Worker:
    def __init__(
        self, http: httpx.AsyncClient, document: Mapping[str, Any], operations: Sequence[Operation], *, known: Known,
        rng: random.Random, findings: Findings,
    ) -> None:  # fmt: skip
        self._http = http
        self._operations = operations
        self._weights = [_weight_of(each) for each in operations]
        self._verdicts = Verdicts(document)
        self._known = known
        self._rng = rng
        self._findings = findings
        self._has_runs = any(each.path == paths.RUNS and each.method == "POST" for each in operations)
        self._has_poll = any(each.path == paths.POLL for each in operations)
        self._run_id = ""

    async def work(self, num_requests: int) -> None:
        for count in range(num_requests):
            if self._has_runs and count % _RUN_EVERY == 0:
                await self._take_another_run()
            if self._has_poll and count % _POLL_EVERY == 0:
                await self._take_outcomes()
            (operation,) = self._rng.choices(self._operations, self._weights)
            await self._send(request_of(operation, self._known, self._rng))
        await self._leave_run()
        await self._take_outcomes()

    async def _send(self, hostile: Hostile) -> None:
        self._findings.requests += 1
        what = f"{hostile.operation.method} {hostile.target[:200]!r} {dict(hostile.headers)} {hostile.content[:200]!r}"
        try:
            response = await self._http.request(
                hostile.operation.method,
                "/",
                content=hostile.content,
                headers=[(name.encode(), value.encode("latin-1")) for name, value in hostile.headers],
                extensions={"target": hostile.target},
            )
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol):
            self._findings.refused_by_client += 1
            return
        except httpx.TransportError as error:
            self._findings.dropped.append(f"{error!r} {what}")
            return
        self._findings.statuses[response.status_code] += 1
        self._findings.unavailable += is_meant(response.status_code, response.content)
        complaint = self._verdicts.complaint(
            hostile.operation,
            response.status_code,
            response.headers.get("content-type", ""),
            response.content,
            is_spoilt=hostile.is_spoilt or dict(hostile.headers).get("Host") is not None,
        )
        if complaint:
            self._findings.complain(f"{complaint} <- {what}")
        if hostile.operation.method == "DELETE" and self._has_runs and response.is_success:
            await self._take_another_run()
        elif response.status_code == 202:
            self._known.ids["operation_id"][0] = f"{self._run_id}:{self._known.seq}"
            self._known.seq += 1
        elif response.status_code == 409:
            await self._resume()

    async def _take_another_run(self) -> None:
        await self._leave_run()
        message = RIGHT["CreateRunRequest"]()
        message.run_id = f"{self._known.client_id}-run-{next(self._known.numbers)}"
        response = await self._post(paths.RUNS, message.SerializeToString())
        assert response.status_code == 200, response.text
        self._run_id, self._known.seq = message.run_id, 1
        self._known.ids["run_id"][0] = message.run_id

    async def _leave_run(self) -> None:
        """Deletes its own run and those that its requests have made; other workers keep theirs."""
        if not self._run_id:
            return
        listed = await self._http.get(paths.RUNS, headers=self._headers())
        for run in training_pb2.ListRunsResponse.FromString(listed.content).runs:
            if run.run_id == self._run_id or not run.run_id.startswith("fuzz-"):
                await self._http.delete(paths.RUN.format(run_id=run.run_id), headers=self._headers())
        self._run_id = ""

    async def _resume(self) -> None:
        """Gives up what lies open, so that what comes next runs."""
        if not self._run_id:
            return
        place = paths.VERB.format(run_id=self._run_id, verb=paths.Verb.SKIP)
        await self._post(f"{place}?seq={self._known.seq}", b"")
        response = await self._http.get(paths.RUN.format(run_id=self._run_id), headers=self._headers())
        if response.status_code == 200:
            self._known.seq = training_pb2.Run.FromString(response.content).next_seq

    async def _take_outcomes(self) -> None:
        if not self._has_poll:
            return
        ack: list[str] = []
        while True:
            poll = operations_pb2.PollRequest(client_id=self._known.client_id, ack=ack)
            response = await self._post(paths.POLL, poll.SerializeToString())
            finished = operations_pb2.PollResponse.FromString(response.content).finished
            for operation in finished:
                if operation.error.status >= 500:
                    self._findings.complain(f"an operation failed with {operation.error}")
            ack = [operation.operation_id for operation in finished]
            if not ack:
                return

    async def _post(self, place: str, content: bytes) -> httpx.Response:
        return await self._http.post(place, content=content, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        authorization = f"Bearer {self._known.key}"
        return {**_BINARY, "Authorization": authorization, paths.CLIENT_ID: self._known.client_id}
