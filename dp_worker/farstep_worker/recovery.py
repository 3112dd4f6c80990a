"""What a worker that is started anew makes of a journal: every run as it was, bit for bit, and what is left to do.

A run begins with its newest good snapshot, or afresh. Operations whose end was written down are done again where that
changes the run, without asking or telling anybody; what failed, was cancelled or only looked is not. All that has no
end goes into the queue as if it had just come in.

Invariant: one run that cannot be brought back is lost alone, and says why.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from farstep_proto.errors import ApiError, InvalidInput
from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2
from farstep_serving.messages import decode_as
from farstep_worker.assembly import Address, Assembler, digest_of
from farstep_worker.executor import Executor
from farstep_worker.journal.journal import Journal
from farstep_worker.journal.records import Part, RecordedOperation, RecordedRun
from farstep_worker.runs import Run, RunConfig, read_config
from farstep_worker.snapshots import read_snapshot
from farstep_worker.submission import Call, Limits, parse_call, request_type

log = logging.getLogger(__name__)

_LEAVES_THE_RUN = frozenset({Verb.FORWARD, Verb.SKIP, Verb.IMPORT_ADAPTER})
_PUBLISHES = frozenset({Verb.PUBLISH, Verb.SAVE_STATE})


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of a run's operations: decided from what is written down alone.

    Args:
        done: those that ran and whose end counts, in order.
        waiting: those to be run, and parts of such, in order.
        next_seq: of the queue.
        passed: seqs from there on that will not come any more.
    """

    done: Sequence[RecordedOperation]
    waiting: Sequence[RecordedOperation]
    next_seq: int
    passed: frozenset[int]


def plan_of(recorded: RecordedRun) -> Plan:
    """A checkpoint that was loaded without a snapshot after it was told to nobody: from there on, nothing has run."""
    in_snapshot = max([recorded.covered_seq, *(row.seq for row in recorded.snapshots)])
    ended = [operation for operation in recorded.operations.values() if operation.ending is not None]
    ran = [operation for operation in ended if operation.ending is not None and operation.ending.ran]
    untold = [operation.seq for operation in ran if operation.seq > in_snapshot and _has_loaded(operation)]
    passed = [operation for operation in ended if not _is_cancelled(operation)]
    end = 1 + max([in_snapshot, *(operation.seq for operation in passed)])
    next_seq = min([end, *untold])
    done = [operation for operation in ran if operation.seq < next_seq]
    again = {operation.seq for operation in ran if operation.seq >= next_seq}
    waiting = [
        operation
        for operation in recorded.operations.values()
        if operation.seq >= next_seq and (operation.ending is None or operation.seq in again)
    ]
    open_seqs = {operation.seq for operation in waiting}
    settled = {operation.seq for operation in ended if operation.seq >= next_seq} | set(range(next_seq, end))
    return Plan(done, waiting, next_seq, frozenset(settled - open_seqs))


def _has_loaded(operation: RecordedOperation) -> bool:
    ending = operation.ending
    return ending is not None and ending.verb == Verb.LOAD_STATE and ending.succeeded


def _is_cancelled(operation: RecordedOperation) -> bool:
    assert operation.ending is not None
    return operation.ending.state == operations_pb2.OPERATION_STATE_CANCELLED


@dataclass(frozen=True, slots=True)
class Recovered:
    """A run that is back, or lost; `num_replayed` operations took `seconds`. `calls` are those that wait, by part."""

    run: Run
    plan: Plan
    calls: dict[tuple[int, int], Call]
    num_replayed: int
    seconds: float


class Recovery:
    """On the thread that computes, before anything else does."""

    def __init__(self, executor: Executor, journal: Journal) -> None:
        self._executor = executor
        self._journal = journal

    def bring_back(self, recorded: RecordedRun) -> Recovered:
        started = time.monotonic()
        plan = plan_of(recorded)
        config = self._config(recorded)
        lost, num_replayed = "", 0
        try:
            run, todo = self._begun(recorded, config, plan)
            run.incarnation = recorded.incarnation
            for operation in todo:
                num_replayed += self._replay(run, operation)
        except (ApiError, OSError) as error:
            lost = error.message if isinstance(error, ApiError) else str(error)
            log.error("run %s is lost: %s", recorded.run_id, lost)
            run = self._executor.create_run(config)
            run.incarnation, run.lost = recorded.incarnation, lost
        run.seq = max([run.seq, *(operation.seq for operation in plan.done)])
        calls = self._calls(run, plan) if not run.lost else {}
        return Recovered(run, plan, calls, num_replayed, time.monotonic() - started)

    def _config(self, recorded: RecordedRun) -> RunConfig:
        base, request = self._executor.base, recorded.request
        return read_config(
            request,
            base_model=base.name,
            max_seq_len=base.max_seq_len,
            default_run_id=recorded.run_id,
            default_seed=request.seed,
        )

    def _begun(self, recorded: RecordedRun, config: RunConfig, plan: Plan) -> tuple[Run, list[RecordedOperation]]:
        """The run as its newest good snapshot has it, and what is to be done since.

        Raises:
            InvalidInput: there is none, and what came before is no longer written down.
        """
        damage = ""
        for row in recorded.snapshots:
            try:
                state, tensors = read_snapshot(self._journal.snapshots, row)
                run = state.rebuilt(self._executor.layers, config, tensors)
            except ApiError as error:
                log.error("snapshot %s of run %s is passed over: %s", row.name, recorded.run_id, error.message)
                damage = error.message
                continue
            self._executor.adopt(run)
            return run, [operation for operation in plan.done if operation.seq > row.seq]
        if recorded.covered_seq:
            raise InvalidInput(f"no snapshot of it can be read ({damage or 'there is none'})")
        return self._executor.create_run(config), list(plan.done)

    def _replay(self, run: Run, operation: RecordedOperation) -> bool:
        """Does an operation again where it changed the run; whether it did.

        Raises:
            InvalidInput: it does not come to what it came to, or cannot be done again.
        """
        ending = operation.ending
        assert ending is not None
        run.seq = operation.seq
        if not ending.succeeded or ending.verb in _LEAVES_THE_RUN:
            return False
        outcome = operations_pb2.Operation.FromString(ending.outcome)
        if ending.verb in _PUBLISHES:
            self._publish_again(run, outcome)
            return False
        if ending.verb == Verb.LOAD_STATE:
            raise InvalidInput(
                f"the snapshot after seq {operation.seq} is damaged, and what that loaded may be another one now"
            )
        again = self._executor.execute(run.config.run_id, self._call(run, operation)).operation
        if again.state != operations_pb2.OPERATION_STATE_SUCCEEDED:
            raise InvalidInput(f"seq {operation.seq} fails when it is done again: {again.error.message}")
        self._compare(run, outcome, again)
        return True

    def _publish_again(self, run: Run, outcome: operations_pb2.Operation) -> None:
        version = outcome.save_weights.policy_version
        if outcome.save_weights.HasField("policy_version"):
            run.policy_version = version
            config = run.config
            self._executor.publisher.ensure(config.run_id, version, run.adapter, project=config.project)

    def _compare(self, run: Run, before: operations_pb2.Operation, again: operations_pb2.Operation) -> None:
        """Says where a device does not repeat itself; what the client was told of is what it computed first."""
        if before.HasField("optim_step") and before.optim_step != again.optim_step:
            log.warning(
                "run %s: seq %d came to a gradient norm of %.9g, and to %.9g when it was done again",
                run.config.run_id,
                run.seq,
                before.optim_step.metrics["grad_norm"],
                again.optim_step.metrics["grad_norm"],
            )

    def _calls(self, run: Run, plan: Plan) -> dict[tuple[int, int], Call]:
        """Of a run that has lost one of them, none: it is lost with it."""
        limits = run.config.limits(self._executor.base.vocab_size)
        try:
            return {
                (part.seq, part.part): self._parsed(part, limits)
                for operation in plan.waiting
                for part in operation.parts
            }
        except ApiError as error:
            log.error("run %s is lost: %s", run.config.run_id, error.message)
            run.lost = error.message
            return {}

    def _call(self, run: Run, operation: RecordedOperation) -> Call:
        limits = run.config.limits(self._executor.base.vocab_size)
        assembler = Assembler()
        for part in operation.parts:
            address = Address(part.run_id, part.seq, part.part, part.num_parts)
            call = self._parsed(part, limits)
            whole = assembler.add(address, call, digest=part.digest, num_bytes=part.num_bytes, now=0.0)
            if whole is not None:
                return whole.call
        raise InvalidInput(f"seq {operation.seq} is not in the journal as a whole")

    def _parsed(self, part: Part, limits: Limits) -> Call:
        body = self._journal.body(part)
        if body is None:
            raise InvalidInput(f"the body of seq {part.seq} is not in the journal")
        if digest_of(part.verb, body, Address(part.run_id, part.seq, part.part, part.num_parts)) != part.digest:
            raise InvalidInput(f"the body of seq {part.seq} is damaged")
        where = f"part[{part.part}]." if part.num_parts > 1 else ""
        message = decode_as(part.content_type, body, request_type(part.verb))
        return parse_call(part.verb, message, limits, where=where)
