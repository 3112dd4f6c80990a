"""Which replica answers a request: a pure decision over what the router knows of each.

In this order: those that satisfy the gate; among them the one that has the prompt's beginning in its cache, by the
request's affinity key or else by what was sent where before; else the one with the least to do. Neither key nor
prefix ever piles everything on one replica: beyond a share of the load, the next one takes it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from farstep_sampler.versions import AtLeast, Exactly, VersionGate

LOAD_FACTOR = 1.25  # of the mean load, which affinity may put on one replica
LOAD_SLACK = 8  # sequences that any replica may have before its load counts
MIN_PREFIX = 16  # tokens that must agree, for a cache to be worth a busier replica


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that takes requests, as far as one request is concerned.

    `load` counts the sequences in flight, `newest` and `resident` are versions of the request's run there, and
    `num_prefix` the tokens of its prompt that were sent there before.
    """

    url: str
    load: int
    newest: int = 0
    resident: frozenset[int] = frozenset()
    num_prefix: int = 0


def satisfying(candidates: Sequence[Candidate], gate: VersionGate) -> list[Candidate]:
    """Those that serve a version that the gate lets through; an exact one that is resident nowhere can be fetched
    back by whoever has seen it.

    One that has heard of no version is passed over where others have, lest the base model answers for the run.
    """
    match gate:
        case Exactly(0):
            return list(candidates)
        case Exactly(version):
            resident = [c for c in candidates if version in c.resident]
            return resident or [c for c in candidates if c.newest >= version]
        case AtLeast(version):
            fitting = [c for c in candidates if c.newest >= version]
            return [c for c in fitting if c.newest > 0] or fitting


def choose(candidates: Sequence[Candidate], *, affinity_key: str = "") -> Candidate | None:
    """The best of them; None where there are none."""
    if not candidates:
        return None
    mean = (sum(c.load for c in candidates) + 1) / len(candidates)
    bound = max(LOAD_SLACK, math.ceil(LOAD_FACTOR * mean))
    light = [c for c in candidates if c.load < bound]
    if affinity_key and light:
        # Rendezvous hashing: every key has its own order of replicas, and keeps it when others come and go.
        return max(light, key=lambda c: _weight(affinity_key, c.url))
    cached = [c for c in light if c.num_prefix >= MIN_PREFIX]
    if cached:
        return max(cached, key=lambda c: (c.num_prefix, -c.load))
    return min(candidates, key=lambda c: c.load)


def _weight(affinity_key: str, url: str) -> bytes:
    return hashlib.sha256(f"{affinity_key}\0{url}".encode()).digest()
