"""What stands behind a router's routes: the gate, the choice of a replica, and going elsewhere when one is lost.

Samples change nothing, so repeating one is safe; the router draws the seed that a request leaves open, so that the
repetition gives the same tokens. A request is refused only when no replica that is left can take it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from farstep_proto import paths
from farstep_proto.errors import ApiError, Draining, PolicyNotReady
from farstep_proto.tensors import IntArray
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.v1 import training_pb2
from farstep_sampler.events import Events
from farstep_sampler.request import ModelLimits, Target, job_of, target_of
from farstep_sampler.router.link import ReplicaLink
from farstep_sampler.router.members import MakeLink, Members
from farstep_sampler.router.prefix_index import PrefixIndex
from farstep_sampler.router.replica_http import NobodyLeft, RelayedError, ReplicaLost
from farstep_sampler.router.routing import Candidate, choose, satisfying
from farstep_sampler.router.streams import relay
from farstep_sampler.submissions import Work
from farstep_sampler.versions import AtLeast, Exactly, VersionGate
from farstep_serving.keys import Caller

DEFAULT_GATE_WAIT_S = 60.0
_ELSEWHERE = frozenset({425, 429, 503})  # another replica may take what this one does not
_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A request on its way: whom it asks for, its prompt [T], and how long it may wait for a version."""

    target: Target
    prompt: IntArray
    num_sequences: int
    affinity_key: str
    deadline: float  # of the event loop's clock

    @property
    def source(self) -> str:
        return self.target.source

    @property
    def prefix_of(self) -> str:
        """Whose prompts to this source are remembered together: where others' were sent changes no choice."""
        return f"{self.target.caller.project}/{self.source}"


class Router:
    """The backend of a router process.

    Args:
        urls: the replicas to begin with.
    """

    def __init__(self, urls: Sequence[str], *, make_link: MakeLink) -> None:
        self._urls = urls
        self.members = Members(make_link, on_change=self._notify)
        self._prefixes = PrefixIndex()
        self._changed = asyncio.Event()
        self._revision = 0
        self._is_draining = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The replicas are watched inside the block."""
        for url in self._urls:
            self.members.add(url)
        try:
            yield
        finally:
            await self.members.close()

    # What a replica does, too

    def prepare(self, request: pb.SampleRequest, gate: VersionGate, caller: Caller) -> Work:
        wanted = self.want(request, gate, caller)
        return partial(self._sample, request, wanted)

    def open_stream(self, request: pb.SampleRequest, gate: VersionGate, caller: Caller) -> Events:
        wanted = self.want(request, gate, caller)

        def forward(held_to: VersionGate | None) -> tuple[bytes, dict[str, str]]:
            if held_to is None:
                return self.forwarded(request, wanted)
            request.in_flight = ""  # what goes on with newer versions does not come again
            # A gate is for runs: the base model and checkpoints are the same wherever they are asked for.
            return self.forwarded(request, wanted, gate=held_to if request.run_id else None)

        return relay(
            self.attempts(wanted), forward, num_sequences=wanted.num_sequences, wait_s=wanted.target.gate_wait_s
        )

    async def list_policies(self, caller: Caller, *, after: int, wait_s: float) -> pb.ListPoliciesResponse:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self._revision <= after and not self._is_draining:
                    await self._changed.wait()
        merged: dict[str, pb.PolicyState] = {}
        for link in self._serving():
            for source, state in link.policies.items():
                if not caller.may_see(state.project):
                    continue
                fresh = pb.PolicyState(run_id=state.run_id, model_path=state.model_path, project=state.project)
                into = merged.setdefault(source, fresh)
                into.newest_version = max(into.newest_version, state.newest_version)
                into.resident_versions[:] = sorted({*into.resident_versions, *state.resident_versions})
        return pb.ListPoliciesResponse(policies=merged.values(), revision=self._revision, draining=self._is_draining)

    async def wait_for_policy(self, run_id: str, caller: Caller, *, min_version: int, wait_s: float) -> pb.PolicyState:
        """As a replica's: answers as soon as one of them serves the version."""
        target = Target(run_id, AtLeast(min_version), wait_s, caller=caller)
        deadline = asyncio.get_running_loop().time() + wait_s
        await self._admit(Wanted(target, np.empty(0, np.int32), 1, "", deadline), tried=set())
        policies = (await self.list_policies(caller, after=-1, wait_s=0)).policies
        return next((state for state in policies if state.run_id == run_id), pb.PolicyState(run_id=run_id))

    async def load_policy(self, model_path: str, caller: Caller) -> pb.PolicyState:
        """Has every replica load a checkpoint."""
        headers = _asking_for(caller)
        body = pb.LoadPolicyRequest(model_path=model_path).SerializeToString()
        answers = await asyncio.gather(
            *(link.call("POST", paths.LOAD_POLICY, body, headers=headers) for link in self._serving()),
            return_exceptions=True,
        )
        loaded = [answer for answer in answers if isinstance(answer, bytes)]
        if loaded:
            return pb.PolicyState.FromString(loaded[0])
        raise next((answer for answer in answers if isinstance(answer, RelayedError)), NobodyLeft())

    async def info(self) -> training_pb2.ServerInfo:
        info = training_pb2.ServerInfo()
        info.CopyFrom(self._known_info())
        info.role = "router"
        return info

    async def tokenizer(self) -> training_pb2.TokenizerFiles:
        for link in self._serving():
            with contextlib.suppress(ReplicaLost):
                return training_pb2.TokenizerFiles.FromString(await link.call("GET", paths.TOKENIZER))
        raise NobodyLeft()

    def check_health(self) -> None:
        self._check_draining()
        self._known_info()

    def drain(self) -> None:
        """Takes nothing new; what is in flight ends normally."""
        self._is_draining = True
        self._notify()

    # A request on its way

    def want(self, request: pb.SampleRequest, gate: VersionGate, caller: Caller) -> Wanted:
        """Checks a request and draws its seed if it has none, so that it is the same wherever it is repeated.

        Raises:
            InvalidInput: naming the field.
            Draining: nothing new is taken.
        """
        self._check_draining()
        info = self._known_info()
        job = job_of(request, limits=ModelLimits(info.max_seq_len, info.vocab_size, ()))
        target = target_of(request, gate=gate, caller=caller, default_wait_s=DEFAULT_GATE_WAIT_S)
        if not request.params.HasField("seed"):
            request.params.seed = secrets.randbits(63)
        deadline = asyncio.get_running_loop().time() + target.gate_wait_s
        return Wanted(target, job.prompt, job.num_samples, request.affinity_key, deadline)

    async def attempts(self, wanted: Wanted) -> AsyncGenerator[ReplicaLink, None]:
        """One replica after another, each waited for at the gate, until the caller is content.

        Raises:
            PolicyNotReady: none serves the version within the budget.
            Internal: with status 503, no replica is left that was not tried.
        """
        tried: set[ReplicaLink] = set()
        while True:
            link = await self._admit(wanted, tried=tried)
            tried.add(link)
            self._prefixes.record(wanted.prefix_of, wanted.prompt, link.url)
            yield link

    async def _sample(self, request: pb.SampleRequest, wanted: Wanted) -> pb.SampleResponse:
        error: ApiError | None = None
        attempts = self.attempts(wanted)
        try:
            async for link in attempts:
                body, headers = self.forwarded(request, wanted)
                try:
                    return await link.sample(body, headers, num_sequences=wanted.num_sequences)
                except ReplicaLost:
                    continue
                except RelayedError as caught:
                    if caught.status not in _ELSEWHERE:
                        raise
                    error = caught
        except NobodyLeft as nobody:
            raise error or nobody from None
        finally:
            await attempts.aclose()
        raise AssertionError("unreachable")

    @staticmethod
    def forwarded(
        request: pb.SampleRequest, wanted: Wanted, *, gate: VersionGate | None = None
    ) -> tuple[bytes, dict[str, str]]:
        """The body and headers for a replica; what is left of the wait is its own, for a version that it fetches."""
        request.gate_wait_s = max(0.0, wanted.deadline - asyncio.get_running_loop().time())
        headers = _headers(gate or wanted.target.gate) | _asking_for(wanted.target.caller)
        return request.SerializeToString(), headers

    # The choice

    async def _admit(self, wanted: Wanted, *, tried: set[ReplicaLink]) -> ReplicaLink:
        """A replica that was not tried and serves what is wanted, as soon as there is one."""
        loop, is_late = asyncio.get_running_loop(), False
        while True:
            changed = self._changed
            links = [link for link in self._serving() if link not in tried]
            link = self._choose(links, wanted)
            if link is not None:
                return link
            if not links:
                raise NobodyLeft()
            self._check_draining()
            if is_late:
                raise self._not_ready(wanted.target)
            try:
                async with asyncio.timeout_at(max(wanted.deadline, loop.time())):
                    await changed.wait()
            except TimeoutError:
                is_late = True  # on a busy loop it may have come together with the deadline: one more look

    def _choose(self, links: Sequence[ReplicaLink], wanted: Wanted) -> ReplicaLink | None:
        lengths = self._prefixes.lengths(wanted.prefix_of, wanted.prompt)
        by_url = {link.url: link for link in links}
        candidates = [_candidate(link, wanted.target, lengths) for link in links]
        if not wanted.target.is_checkpoint and wanted.source:
            candidates = satisfying(candidates, wanted.target.gate)
        chosen = choose(candidates, affinity_key=wanted.affinity_key or recall_key(candidates, wanted.target))
        return None if chosen is None else by_url[chosen.url]

    def _serving(self) -> list[ReplicaLink]:
        return [link for link in self.members if link.takes_requests]

    def _known_info(self) -> training_pb2.ServerInfo:
        for link in self._serving():
            if link.info is not None:
                return link.info
        raise NobodyLeft()

    def _not_ready(self, target: Target) -> ApiError:
        newest = max((_seen(link, target).newest_version for link in self._serving()), default=0)
        relation = " or newer" if isinstance(target.gate, AtLeast) else ""
        return PolicyNotReady(
            f"version {target.gate.version}{relation} of {target.source} is served by no replica yet; "
            f"the newest is {newest}",
            hint="publish it first, or wait longer",
            retry_after_s=_RETRY_AFTER_S,
            wanted_version=target.gate.version,
            newest_version=newest,
        )

    def _check_draining(self) -> None:
        if self._is_draining:
            raise Draining("this router takes nothing new", retry_after_s=_RETRY_AFTER_S)

    def _notify(self) -> None:
        self.members.forget_the_gone()
        self._revision += 1
        self._changed.set()
        self._changed = asyncio.Event()


def recall_key(candidates: Sequence[Candidate], target: Target) -> str:
    """Where a version must be fetched back, all who want it go to the same replica; empty otherwise."""
    match target.gate:
        case Exactly(version) if version and not any(version in c.resident for c in candidates):
            return f"{target.source}@{version}"
        case _:
            return ""


def _seen(link: ReplicaLink, target: Target) -> pb.PolicyState:
    """What a replica serves of a target; of another project's run nothing, as of one that nobody has heard of."""
    state = link.policies.get(target.source)
    return state if state is not None and target.caller.may_see(state.project) else pb.PolicyState()


def _candidate(link: ReplicaLink, target: Target, lengths: dict[str, int]) -> Candidate:
    state = _seen(link, target)
    return Candidate(
        url=link.url,
        load=link.num_in_flight,
        newest=state.newest_version,
        resident=frozenset(state.resident_versions),
        num_prefix=lengths.get(link.url, 0),
    )


def _asking_for(caller: Caller) -> dict[str, str]:
    """Replicas are asked with the router's own key, an operator's: they see it as whoever asks the router."""
    return {paths.ON_BEHALF_OF: caller.project} if caller.project else {}


def _headers(gate: VersionGate) -> dict[str, str]:
    name = paths.MIN_POLICY_VERSION if isinstance(gate, AtLeast) else paths.EXACT_POLICY_VERSION
    return {} if gate == AtLeast(0) else {name: str(gate.version)}
