"""The router: one address for several replicas, with a replica's API.

It samples nothing. It sends each request to a replica that satisfies the gate as far as it knows, lets that
replica enforce the gate, and goes elsewhere when a replica dies: samples change nothing, so repeating one is safe.

`python -m farstep_sampler.router --replica URL --replica URL …`
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from functools import partial

from farstep_proto import paths
from farstep_proto.errors import ApiError, Internal
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.v1 import training_pb2
from farstep_sampler.replica_link import RelayedError, ReplicaLink, ReplicaLost
from farstep_sampler.request import ModelLimits, job_of, target_of
from farstep_sampler.server import make_sampler_app
from farstep_sampler.submissions import Submissions, Work
from farstep_sampler.versions import AtLeast, Exactly, VersionGate
from farstep_serving.keys import KeyRing
from farstep_serving.process import announce, bind, exit_with_parent, serve, setup_logging, url_of

_ELSEWHERE = frozenset({429, 503})  # another replica may take what this one does not
_NOT_HERE = frozenset({404, 425})  # another replica may have the version
_RETRY_AFTER_S = 1.0


class Router:
    """The backend of a router process."""

    def __init__(self, links: Sequence[ReplicaLink]) -> None:
        self._links = links

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The replicas are watched inside the block."""
        tasks = [asyncio.create_task(link.run()) for link in self._links]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def prepare(self, request: pb.SampleRequest, gate: VersionGate) -> Work:
        info = self._known_info()
        job_of(request, limits=ModelLimits(info.max_seq_len, info.vocab_size, ()))
        target = target_of(request, gate=gate, default_wait_s=0.0)
        return partial(self._sample, request, target.source, gate)

    async def list_policies(self) -> pb.ListPoliciesResponse:
        merged: dict[str, pb.PolicyState] = {}
        for link in self._healthy():
            for source, state in link.policies.items():
                into = merged.setdefault(source, pb.PolicyState(run_id=state.run_id, model_path=state.model_path))
                into.newest_version = max(into.newest_version, state.newest_version)
                resident = sorted({*into.resident_versions, *state.resident_versions})
                into.resident_versions[:] = resident
        return pb.ListPoliciesResponse(policies=merged.values())

    async def wait_for_policy(self, run_id: str, *, min_version: int, wait_s: float) -> pb.PolicyState:
        """As a replica's: answers as soon as one of them serves the version."""
        path = f"{paths.POLICY.format(run_id=run_id)}?min_version={min_version}&wait_s={wait_s}"
        tasks = [asyncio.create_task(_ask(link, path, run_id)) for link in self._healthy()]
        error: Exception = _nobody()
        try:
            for task in asyncio.as_completed(tasks):
                try:
                    return await task
                except RelayedError as caught:
                    error = caught
                except ReplicaLost:
                    continue
        finally:
            for each in tasks:
                each.cancel()
        raise error

    async def load_policy(self, model_path: str) -> pb.PolicyState:
        """Has every replica load a checkpoint."""
        body = pb.LoadPolicyRequest(model_path=model_path).SerializeToString()
        answers = await asyncio.gather(
            *(link.call("POST", paths.LOAD_POLICY, body) for link in self._healthy()), return_exceptions=True
        )
        loaded = [answer for answer in answers if isinstance(answer, bytes)]
        if loaded:
            return pb.PolicyState.FromString(loaded[0])
        raise next((answer for answer in answers if isinstance(answer, RelayedError)), _nobody())

    async def info(self) -> training_pb2.ServerInfo:
        info = training_pb2.ServerInfo()
        info.CopyFrom(self._known_info())
        info.role = "router"
        return info

    async def tokenizer(self) -> training_pb2.TokenizerFiles:
        for link in self._healthy():
            with contextlib.suppress(ReplicaLost):
                return training_pb2.TokenizerFiles.FromString(await link.call("GET", paths.TOKENIZER))
        raise _nobody()

    def check_health(self) -> None:
        self._known_info()

    async def _sample(self, request: pb.SampleRequest, source: str, gate: VersionGate) -> pb.SampleResponse:
        body, headers = request.SerializeToString(), _headers(gate)
        tried: list[ReplicaLink] = []
        error: ApiError = _nobody()
        while True:
            untried = [link for link in self._healthy() if link not in tried]
            link = choose(untried, source=source, gate=gate, affinity_key=request.affinity_key)
            if link is None:
                raise error
            tried.append(link)
            try:
                return await link.sample(body, headers)
            except ReplicaLost:
                continue
            except RelayedError as caught:
                may_be_elsewhere = caught.status in _NOT_HERE and any(
                    serves(other, source=source, gate=gate) for other in untried if other is not link
                )
                if caught.status not in _ELSEWHERE and not may_be_elsewhere:
                    raise
                error = caught

    def _healthy(self) -> list[ReplicaLink]:
        return [link for link in self._links if link.is_healthy]

    def _known_info(self) -> training_pb2.ServerInfo:
        for link in self._healthy():
            if link.info is not None:
                return link.info
        raise _nobody()


def choose(links: Sequence[ReplicaLink], *, source: str, gate: VersionGate, affinity_key: str) -> ReplicaLink | None:
    """The replica for a request: among those known to satisfy the gate, or all where none is known to.

    With an affinity key it is the same one as long as it is there (rendezvous hashing); without, the least busy.
    """
    candidates = [link for link in links if serves(link, source=source, gate=gate)] or list(links)
    if affinity_key:
        return max(candidates, key=lambda link: _weight(affinity_key, link.url), default=None)
    return min(candidates, key=lambda link: link.num_in_flight, default=None)


def serves(link: ReplicaLink, *, source: str, gate: VersionGate) -> bool:
    """Whether a replica is known to have a version that the gate lets through."""
    state = link.policies.get(source, pb.PolicyState())
    match gate:
        case AtLeast(version):
            return max([0, *state.resident_versions]) >= version
        case Exactly(version):
            return version == 0 or version in state.resident_versions


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is told to stop; FARSTEP_API_KEY is the key of the router and of its replicas."""
    parser = argparse.ArgumentParser(prog="farstep_sampler.router", description="One address for several replicas.")
    parser.add_argument("--replica", action="append", required=True, metavar="URL", help="once for each replica")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--max-requests", type=int, default=16_384, help="most requests in flight")
    parser.add_argument("--exit-with-parent", action="store_true")
    parser.add_argument("--log-level", default="INFO")
    flags = parser.parse_args(arguments)
    setup_logging(flags.log_level)
    key = os.environ.get("FARSTEP_API_KEY")
    keys = KeyRing.of(key)
    keys.check_host(flags.host)
    if flags.exit_with_parent:
        exit_with_parent()
    asyncio.run(_serve(flags, key, keys))


async def _serve(flags: argparse.Namespace, key: str | None, keys: KeyRing) -> None:
    router = Router([ReplicaLink(url, key=key) for url in flags.replica])
    submissions = Submissions(max_pending=flags.max_requests)
    app = make_sampler_app(router, submissions, keys=keys)
    sock = bind(flags.host, flags.port)
    async with router.running(), submissions:
        await serve(
            app,
            sock,
            on_ready=lambda: announce(url=url_of(sock), pid=os.getpid()),
            on_stop=submissions.table.drain,
        )


async def _ask(link: ReplicaLink, path: str, run_id: str) -> pb.PolicyState:
    """A replica's answer about a run, which the next choice takes into account."""
    state = pb.PolicyState.FromString(await link.call("GET", path))
    link.policies[run_id] = state
    return state


def _headers(gate: VersionGate) -> dict[str, str]:
    name = paths.MIN_POLICY_VERSION if isinstance(gate, AtLeast) else paths.EXACT_POLICY_VERSION
    return {} if gate == AtLeast(0) else {name: str(gate.version)}


def _weight(affinity_key: str, url: str) -> bytes:
    return hashlib.sha256(f"{affinity_key}\0{url}".encode()).digest()


def _nobody() -> Internal:
    error = Internal("no replica answers", hint="look at the replicas' logs", retry_after_s=_RETRY_AFTER_S)
    error.status = 503
    return error


if __name__ == "__main__":
    main()
