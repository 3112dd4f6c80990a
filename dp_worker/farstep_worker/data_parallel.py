"""One trainer in several processes: each holds the model and a replica of every run, and takes a share of each pass.

Rank 0 is the trainer that everyone sees (`LeadingExecutor`); the others do what it tells them (`FollowingExecutor`).
Data is shared out, gradients are summed over all ranks, and what changes a run (a step, a reset, a load) is done by
every rank alike. Files and policies are rank 0's alone.

Invariant: replicas are equal bit for bit. Each change is followed by a comparison of their checksums and answers, and a
trainer whose replicas differ ends.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.adapter import Adapter
from farstep_model.lora import LoraLayers
from farstep_model.packed import Layout
from farstep_proto.errors import ApiError
from farstep_proto.metrics import combine_metrics
from farstep_proto.tensors import tensor_from_proto
from farstep_proto.v1 import common_pb2, operations_pb2, ranks_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.evicted import EvictedRuns
from farstep_worker.executor import Executor
from farstep_worker.gradients import PassResult
from farstep_worker.outcome import Outcome, failed
from farstep_worker.phases import Phases
from farstep_worker.publisher import Publisher
from farstep_worker.rank_messages import ReplicatedCall, read_call, to_command, to_creation
from farstep_worker.ranks import RankDied, RankGroup
from farstep_worker.run_state import RunState
from farstep_worker.runs import RandomStream, Run, RunConfig, read_config
from farstep_worker.submission import Call, Pass

_NO_TOKENS: Mapping[str, float] = {"loss:sum": 0.0, "tokens:sum": 0.0}
_DATUM = re.compile(r"\bdata\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's part of a pass, and where in the whole each of its data stands."""

    call: Pass
    indices: Sequence[int]


def shares(call: Pass, world: int) -> list[Share]:
    """Data for each rank, by number of tokens as even as whole groups allow; a share may be empty.

    A group is what its loss takes together: a datum, or a pair. The longest goes first, each to the rank that has least
    so far: the same data always gives the same shares.
    """
    lengths = [len(example.tokens) for example in call.examples]
    together = call.spec.num_data
    groups = [range(at, at + together) for at in range(0, len(lengths), together)]
    indices: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    for group in sorted(groups, key=lambda group: -sum(lengths[index] for index in group)):
        rank = loads.index(min(loads))
        indices[rank] += group
        loads[rank] += sum(lengths[index] for index in group)
    return [_share_of(call, sorted(mine)) for mine in indices]


class Discarded(ApiError):
    """This rank's share went well and was thrown away, because another rank's did not."""

    error_class = "DiscardedError"


class LeadingExecutor(Executor):
    """The executor of rank 0: the others have heard of a call, and done it, when it has an outcome."""

    def __init__(
        self,
        layers: LoraLayers,
        store: CheckpointStore,
        *,
        token_budget: int,
        group: RankGroup,
        layout: Layout = "padded",
        evicted: EvictedRuns | None = None,
        run_memory_bytes: int | None = None,
        publisher: Publisher | None = None,
    ) -> None:
        super().__init__(
            layers,
            store,
            token_budget=token_budget,
            layout=layout,
            evicted=evicted,
            run_memory_bytes=run_memory_bytes,
            publisher=publisher,
        )
        self._group = group
        self._followers = range(1, group.world)
        self._untold: deque[ranks_pb2.RankCommand] = deque()

    def create_run(self, config: RunConfig) -> Run:
        """The others hear of it before the first call that needs them: none of them can be spoken to during a pass.

        Raises RankDied, and whatever is wrong with the configuration.
        """
        self._group.check_whole()
        run = super().create_run(config)
        self._untold.append(to_creation(config, base_model=self.base.name))
        return run

    def adopt(self, run: Run) -> None:
        """Raises RankDied."""
        super().adopt(run)
        creation = to_creation(run.config, base_model=self.base.name)
        adoption = ranks_pb2.AdoptRun(request=creation.create_run, state=RunState.of(run).to_json())
        self._untold.append(ranks_pb2.RankCommand(adopt_run=adoption))
        self._tell()

    def delete_run(self, run_id: str) -> None:
        super().delete_run(run_id)
        self._untold.append(ranks_pb2.RankCommand(forget_run=run_id))

    def evict(self, run: Run) -> Mapping[str, Tensor]:
        self._untold.append(ranks_pb2.RankCommand(evict_run=run.config.run_id))
        return super().evict(run)

    def restore(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        """The others get what rank 0 has kept; raises RankDied."""
        super().restore(run, tensors)
        self._untold.append(ranks_pb2.RankCommand(restore_run=run.config.run_id))
        self._tell()

    def _tell(self) -> None:
        """Has the others create, drop, evict and restore what rank 0 has, in the same order; raises RankDied."""
        while self._untold:
            command = self._untold.popleft()
            for rank in self._followers:
                self._group.send(rank, command)
            run = self.runs.get(command.create_run.run_id or command.restore_run or command.adopt_run.request.run_id)
            if run is not None and not command.HasField("create_run"):
                self._group.hand_out(run.tensors().values())
            if run is None or run.away is not None:  # dropped or evicted, be it after it was created
                for rank in self._followers:
                    self._group.receive(rank, ranks_pb2.RankReport)
            else:
                self._check_equal(ranks_pb2.RankReport(checksum=checksum(run.adapter)))

    def _outcome(self, run_id: str, call: Call, phases: Phases) -> Outcome:
        if not isinstance(call, ReplicatedCall) or run_id not in self.runs:
            # a pass is shared out where it is computed; files and policies are of this process alone
            return super()._outcome(run_id, call, phases)
        try:
            self._resident(run_id, phases)
            self._tell()
            for rank in self._followers:
                self._group.send(rank, to_command(run_id, call))
            outcome = super()._outcome(run_id, call, phases)
            self._check_equal(_report(self.runs[run_id], outcome))
        except ApiError as error:
            return failed(error)
        return outcome

    def compute(self, run: Run, call: Pass, phases: Phases, *, dropout_seed: int) -> PassResult:
        mine, *others = shares(call, self._group.world)
        with phases.measure("exchange"):
            self._tell()
            for rank, share in enumerate(others, start=1):
                self._group.send(rank, to_command(run.config.run_id, share.call))
        failure: Exception | None = None
        try:
            local = _joined(
                self._group,
                lambda: super(LeadingExecutor, self).compute(run, mine.call, phases, dropout_seed=dropout_seed),
                phases,
            )
        except RankDied:
            raise
        except Exception as error:  # the others still report
            failure = error
        with phases.measure("exchange"):
            reports = [self._group.receive(rank, ranks_pb2.RankReport).operation for rank in self._followers]
        if failure is not None:
            raise _first_failure(failure, mine, others, reports)
        return _whole(call, local, mine, others, reports)

    def _check_equal(self, own: ranks_pb2.RankReport) -> None:
        """Takes every follower's report on what all were told to do.

        Raises:
            RankDied: one of them came to something else; the group is given up.
        """
        wanted = own.SerializeToString(deterministic=True)
        reports = [self._group.receive(rank, ranks_pb2.RankReport) for rank in self._followers]
        for rank, report in zip(self._followers, reports, strict=True):
            if report.SerializeToString(deterministic=True) != wanted:
                raise self._group.lose(f"rank {rank} no longer holds what rank 0 holds: {_in_short(report.operation)}")


class FollowingExecutor(Executor):
    """The executor of every other rank."""

    def __init__(
        self,
        layers: LoraLayers,
        store: CheckpointStore,
        *,
        token_budget: int,
        group: RankGroup,
        layout: Layout = "padded",
    ) -> None:
        super().__init__(layers, store, token_budget=token_budget, layout=layout)
        self._group = group

    def obey(self, command: ranks_pb2.RankCommand) -> ranks_pb2.RankReport:
        """Carries one command out; raises RankDied when there is nobody left to obey."""
        base = self.base
        if command.HasField("create_run"):
            return ranks_pb2.RankReport(checksum=checksum(self.create_run(self._config(command.create_run)).adapter))
        if command.HasField("adopt_run"):
            return ranks_pb2.RankReport(checksum=self._adopted(command.adopt_run))
        if command.HasField("forget_run"):
            self.delete_run(command.forget_run)
            return ranks_pb2.RankReport()
        if command.HasField("evict_run"):
            self.evict(self.runs[command.evict_run])
            return ranks_pb2.RankReport()
        if command.HasField("restore_run"):
            return ranks_pb2.RankReport(checksum=self._restored(self.runs[command.restore_run]))
        run = self.runs[command.execute.run_id]
        call = read_call(command.execute, run.config.limits(base.vocab_size))
        outcome = self.execute(run.config.run_id, call)
        return _report(run, outcome) if isinstance(call, ReplicatedCall) else _report(None, outcome)

    def _config(self, request: pb.CreateRunRequest) -> RunConfig:
        base = self.base
        return read_config(
            request,
            base_model=base.name,
            max_seq_len=base.max_seq_len,
            default_run_id="",
            default_seed=request.seed,
        )

    def _adopted(self, command: ranks_pb2.AdoptRun) -> int:
        """Takes a run over from rank 0; the checksum of what came."""
        run = RunState.from_json(command.state).rebuilt(self.layers, self._config(command.request), None)
        self.adopt(run)
        self._group.hand_out(run.tensors().values())
        return checksum(run.adapter)

    def _restored(self, run: Run) -> int:
        """Takes a run back from rank 0; the checksum of what came."""
        assert run.away is not None
        self.restore(run, {name: torch.empty(shape) for name, shape in run.away.items()})
        self._group.hand_out(run.tensors().values())
        return checksum(run.adapter)

    def compute(self, run: Run, call: Pass, phases: Phases, *, dropout_seed: int) -> PassResult:
        """This rank's own outputs and metrics, and the gradients of all. Its dropout is not that of rank 0."""
        own_seed = RandomStream(dropout_seed, self._group.rank).current()
        return _joined(
            self._group,
            lambda: super(FollowingExecutor, self).compute(run, call, phases, dropout_seed=own_seed),
            phases,
        )


def checksum(adapter: Adapter) -> int:
    """Changes with any bit of the weights, whatever the order in which a device adds them up."""
    sums = [parameter.detach().view(torch.int32).sum(dtype=torch.int64) for parameter in adapter.parameters()]
    return int(torch.stack(sums).sum())


def _share_of(call: Pass, indices: list[int]) -> Share:
    examples = tuple(call.examples[index] for index in indices)
    return Share(dataclasses.replace(call, examples=examples), indices)


def _joined(group: RankGroup, compute: Callable[[], PassResult], phases: Phases) -> PassResult:
    """One rank's result, with the gradients of all ranks in it.

    Raises:
        Discarded: another rank failed.
        RankDied: there is no sum to be had any more.
        Exception: this rank failed, and the others know.
    """
    try:
        result = compute()
        flat = None if result.gradients is None else _flat(result.gradients)
    except Exception:
        group.all_succeeded(succeeded=False)
        raise
    with phases.measure("exchange"):
        if not group.all_succeeded(succeeded=True):
            raise Discarded("another rank failed")
        if flat is not None and result.gradients is not None:
            group.sum(flat)
            result = dataclasses.replace(result, gradients=_cut(flat, result.gradients))
    return result if result.metrics else dataclasses.replace(result, metrics=_NO_TOKENS)


def _flat(tensors: Sequence[Tensor | None]) -> Tensor:
    """Those that are there, one after the other: of a pass they are the same on every rank."""
    return torch.cat([tensor.flatten() for tensor in tensors if tensor is not None])


def _cut(flat: Tensor, like: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Views of a flat tensor in the shapes of others, where there are others."""
    ends = accumulate((0 if tensor is None else tensor.numel() for tensor in like), initial=0)
    return [
        None if tensor is None else flat[start:end].view(tensor.shape)
        for (start, end), tensor in zip(pairwise(ends), like, strict=True)
    ]


def _whole(
    call: Pass,
    local: PassResult,
    mine: Share,
    others: Sequence[Share],
    reports: Sequence[operations_pb2.Operation],
) -> PassResult:
    """The result of all data, from rank 0's and the reports of the others."""
    outputs: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(call.examples)
    for index, array in zip(mine.indices, local.outputs, strict=True):
        outputs[index] = array
    theirs = [report.forward_backward for report in reports]
    for share, output in zip(others, theirs, strict=True):
        for index, fields in zip(share.indices, output.loss_fn_outputs, strict=True):
            outputs[index] = tensor_from_proto(fields.fields[call.spec.output])
    metrics = combine_metrics([local.metrics, *(dict(output.metrics) for output in theirs)])
    return dataclasses.replace(
        local,
        loss_sum=metrics["loss:sum"],
        num_active=int(metrics["tokens:sum"]),
        metrics=metrics,
        outputs=outputs,
    )


def _first_failure(
    failure: Exception, mine: Share, others: Sequence[Share], reports: Sequence[operations_pb2.Operation]
) -> Exception:
    """The error of the first rank that has one, with data numbered as in the whole pass."""
    if isinstance(failure, Discarded):
        told = zip(others, (report.error for report in reports), strict=True)
        mine, error = next((share, error) for share, error in told if error.error_class != Discarded.error_class)
        failure = _from_proto(error)
    if isinstance(failure, ApiError):
        failure.message, failure.field = _renumbered(failure.message, mine), _renumbered(failure.field, mine)
    return failure


def _from_proto(error: common_pb2.Error) -> ApiError:
    ours = ApiError(error.message, field=error.field, hint=error.hint)
    ours.error_class, ours.status = error.error_class, error.status
    return ours


def _renumbered(text: str, share: Share) -> str:
    return _DATUM.sub(lambda match: f"data[{share.indices[int(match[1])]}]", text)


def _report(run: Run | None, outcome: Outcome) -> ranks_pb2.RankReport:
    return ranks_pb2.RankReport(operation=outcome.operation, checksum=0 if run is None else checksum(run.adapter))


def _in_short(operation: operations_pb2.Operation) -> str:
    return operation.error.message if operation.HasField("error") else "its weights or its answer differ"
