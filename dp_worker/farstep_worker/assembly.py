"""Operations that travel in several requests: their parts, until all are there.

A part is a whole message of the verb with a share of the data (whole pairs, where the loss takes pairs; of an adapter
that is imported, the next of its bytes), equal in everything else. Parts may come in
any order and more than once.

Invariant: an operation leaves the assembler once, with its data in the order of the parts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from farstep_proto.errors import Conflict, InvalidInput
from farstep_worker.operations import operation_id, split_operation_id
from farstep_worker.submission import Call, ImportAdapter, Pass

MAX_PARTS = 10_000
ABANDONED_S = 600.0
REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Address:
    """Which operation, and which part of it."""

    run_id: str
    seq: int
    part: int = 0
    num_parts: int = 1

    @property
    def operation_id(self) -> str:
        return operation_id(self.run_id, self.seq)


def digest_of(verb: str, body: bytes, address: Address) -> bytes:
    """What tells a repeated request from another one under the same seq."""
    head = f"{verb}/{address.part}/{address.num_parts}\n".encode()
    digest = hashlib.sha256(head)
    digest.update(body)
    return digest.digest()


@dataclass(slots=True)
class _Assembly:
    num_parts: int
    touched_at: float
    num_bytes: int = 0
    digests: dict[int, bytes] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assembled:
    call: Call
    digest: bytes
    num_bytes: int


class Assembler:
    def __init__(self) -> None:
        self._open: dict[str, _Assembly] = {}
        self._done: OrderedDict[str, dict[int, bytes]] = OrderedDict()
        self.num_bytes = 0

    def has(self, address: Address, digest: bytes) -> bool:
        """Whether this part came before.

        Raises:
            Conflict: it came with other content, or the operation in another number of parts.
        """
        assembly = self._open.get(address.operation_id)
        if assembly is not None and assembly.num_parts != address.num_parts:
            raise Conflict(
                f"{address.operation_id} came in {assembly.num_parts} parts before, now in {address.num_parts}",
                field="parts",
            )
        digests = assembly.digests if assembly is not None else self._done.get(address.operation_id, {})
        known = digests.get(address.part)
        if known is not None and known != digest:
            raise Conflict(
                f"part {address.part} of {address.operation_id} came before with different content", field="part"
            )
        return known is not None

    def size_of(self, address: Address) -> int:
        """Bytes of the operation that are here already."""
        assembly = self._open.get(address.operation_id)
        return 0 if assembly is None else assembly.num_bytes

    def open_seqs(self, run_id: str) -> list[int]:
        """Of a run's operations of which some parts are here."""
        return [seq for run, seq in map(split_operation_id, self._open) if run == run_id]

    def is_open(self, wanted: str) -> bool:
        """Whether some parts are here, and others are not."""
        return wanted in self._open

    def check(self, address: Address, call: Call) -> None:
        """Raises as `add` would."""
        assembly = self._open.get(address.operation_id)
        if address.num_parts > 1:
            _check_alike(call, call if assembly is None else next(iter(assembly.calls.values()), call))

    def add(self, address: Address, call: Call, *, digest: bytes, num_bytes: int, now: float) -> Assembled | None:
        """Takes a part that `has` did not know; returns the operation when it is the last one missing.

        Raises:
            InvalidInput: the parts do not belong together.
        """
        if address.num_parts == 1:
            return Assembled(call, digest, num_bytes)
        self._drop_abandoned(now)
        assembly = self._open.get(address.operation_id) or _Assembly(address.num_parts, now)
        _check_alike(call, next(iter(assembly.calls.values()), call))
        self._open[address.operation_id] = assembly
        assembly.calls[address.part] = call
        assembly.digests[address.part] = digest
        assembly.touched_at = now
        assembly.num_bytes += num_bytes
        self.num_bytes += num_bytes
        if len(assembly.calls) < address.num_parts:
            return None
        return self._close(address.operation_id)

    def remember(self, wanted: str, digests: dict[int, bytes]) -> None:
        """An operation that left the assembler of an earlier process: its parts may yet come again."""
        self._done[wanted] = digests
        if len(self._done) > REMEMBERED:
            self._done.popitem(last=False)

    def forget(self, wanted: str) -> bool:
        """Drops what came of an operation; says whether there was any."""
        assembly = self._open.pop(wanted, None)
        if assembly is None:
            return False
        self.num_bytes -= assembly.num_bytes
        return True

    def forget_run(self, run_id: str) -> None:
        """Drops what came of a run's operations that are not complete."""
        for wanted in [key for key in self._open if split_operation_id(key)[0] == run_id]:
            self.forget(wanted)

    def _close(self, wanted: str) -> Assembled:
        assembly = self._open[wanted]
        self.forget(wanted)
        self.remember(wanted, assembly.digests)
        order = range(assembly.num_parts)
        digest = hashlib.sha256(b"".join(assembly.digests[part] for part in order)).digest()
        return Assembled(_join([assembly.calls[part] for part in order]), digest, assembly.num_bytes)

    def _drop_abandoned(self, now: float) -> None:
        for wanted in [key for key, assembly in self._open.items() if assembly.touched_at + ABANDONED_S < now]:
            self.forget(wanted)


def _check_alike(call: Call, other: Call) -> None:
    match call, other:
        case Pass(), Pass():
            names: tuple[str, ...] = ("backward", "loss_fn", "config", "adapter", "custom")
        case ImportAdapter(), ImportAdapter():
            names = ("name", "config")
        case _:
            raise InvalidInput("only forward, forward_backward and import_adapter travel in parts", field="parts")
    for name in names:
        if getattr(call, name) != getattr(other, name):
            raise InvalidInput(
                "differs from an earlier part's",
                field={"config": "loss_fn_config", "custom": "custom_loss"}.get(name, name),
            )


def _join(calls: list[Call]) -> Call:
    if isinstance(calls[0], ImportAdapter):
        tensors = b"".join(call.tensors for call in calls if isinstance(call, ImportAdapter))
        return dataclasses.replace(calls[0], tensors=tensors)
    passes = [call for call in calls if isinstance(call, Pass)]
    first = passes[0]
    examples = tuple(example for part in passes for example in part.examples)
    return dataclasses.replace(first, examples=examples)
