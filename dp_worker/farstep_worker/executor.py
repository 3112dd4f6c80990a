"""What each verb does to a run. All of it happens on the torch thread, one call at a time; runs are made on any.

It knows neither HTTP nor the queue: a call goes in, an outcome comes out. Whatever goes wrong in a call
becomes its outcome; the next call finds the run as it was before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.policy_numbers import Numbered
from farstep_model.load import BaseModel
from farstep_model.lora import LoraLayers
from farstep_model.packed import Layout
from farstep_proto.errors import ApiError, ModelError
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker import checkpoint
from farstep_worker.device import device_at, is_out_of_memory
from farstep_worker.evicted import EvictedRuns
from farstep_worker.fusing import Fusing, can_share, in_order, run_together
from farstep_worker.gradients import PassResult, run_pass
from farstep_worker.outcome import Outcome, computed, failed, out_of_memory, succeeded
from farstep_worker.phases import Phases
from farstep_worker.publisher import Publisher
from farstep_worker.residence import Residence
from farstep_worker.runs import Run, RunConfig
from farstep_worker.submission import (
    AdamSettings,
    Call,
    ImportAdapter,
    LoadState,
    Pass,
    Publish,
    Reset,
    SaveState,
    Skip,
)
from farstep_worker.token_budget import TokenBudget

log = logging.getLogger(__name__)


class Executor:
    """All runs on one base model.

    Args:
        token_budget: tokens of a micro-batch, padding included.
        layout: "packed" only where the model has been prepared for it.
        evicted: where runs go that have no room; without it, all stay.
        run_memory_bytes: room for adapters, gradients and moments of all runs together; None: no limit.
        fuse_runs: small passes of several runs may share a batch, where that gives the same bits.
        publisher: where policies go; by default to the store's shelf.
    """

    def __init__(
        self,
        layers: LoraLayers,
        store: CheckpointStore,
        *,
        token_budget: int,
        layout: Layout = "padded",
        evicted: EvictedRuns | None = None,
        run_memory_bytes: int | None = None,
        fuse_runs: bool = False,
        publisher: Publisher | None = None,
    ) -> None:
        self.runs: dict[str, Run] = {}
        self.on_leave: Callable[[Run, Mapping[str, Tensor]], None] = lambda run, tensors: None
        self._evicted = evicted
        self.fusing = Fusing.of(layers, is_on=fuse_runs and layout == "padded")
        self._residence = Residence(run_memory_bytes if evicted is not None else None)
        self._layers = layers
        self.store = store
        self.publisher = publisher or Publisher(store)
        self._token_budget = TokenBudget(token_budget)
        self._layout = layout

    @property
    def layers(self) -> LoraLayers:
        return self._layers

    @property
    def base(self) -> BaseModel:
        return self._layers.base

    def create_run(self, config: RunConfig) -> Run:
        """On any thread, also while another run's call is computed: a fresh adapter comes of its seed alone."""
        run = Run.start(self._layers, config)
        self.runs[config.run_id] = run
        self._residence.used(config.run_id, run.num_bytes)
        return run

    def adopt(self, run: Run) -> None:
        """Takes in a run that was made elsewhere; where several processes train together, in all of them."""
        self.runs[run.config.run_id] = run
        self._residence.used(run.config.run_id, run.num_bytes)

    def delete_run(self, run_id: str) -> None:
        run = self.runs.pop(run_id, None)
        self._residence.gone(run_id)
        if run is not None and run.away is not None and self._evicted is not None:
            self._evicted.forget(run_id)

    def make_room(self, is_busy: Callable[[str], bool]) -> None:
        """Has runs leave memory, least recently used first, until the others fit; those that are busy stay."""
        if self._evicted is None or not self._evicted.takes_more:
            return
        for run_id in self._residence.leaving(is_busy):
            self._residence.gone(run_id)
            tensors = self.evict(self.runs[run_id])
            self._evicted.put(run_id, tensors)
            self.on_leave(self.runs[run_id], tensors)

    @property
    def resident_bytes(self) -> int:
        """What the runs in memory take."""
        return self._residence.num_bytes

    def evict(self, run: Run) -> Mapping[str, Tensor]:
        """The tensors of a run, which has none afterwards; where several processes train together, in all of them."""
        return run.go_away()

    def restore(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        """The reverse."""
        run.come_back(tensors)

    def execute(self, run_id: str, call: Call) -> Outcome:
        """Runs one call to its end; never raises."""
        phases = device_at(self.base.device).phases()
        outcome = self._outcome(run_id, call, phases)
        phases.finish()
        self._note_use(run_id)
        return replace(outcome, phases_s=phases.seconds)

    def execute_together(self, calls: Sequence[tuple[str, Call]]) -> list[Outcome]:
        """What `execute` gives for calls of different runs, bit for bit, in one batch where that pays."""
        passes = [
            (run_id, self.runs[run_id].adapter, call)
            for run_id, call in calls
            if isinstance(call, Pass)
            and can_share(self.runs[run_id].adapter, call, token_budget=self._token_budget.current())
        ]
        shared = self._fused(in_order(passes))
        return [shared[run_id] if run_id in shared else self.execute(run_id, call) for run_id, call in calls]

    def _fused(self, passes: Sequence[tuple[str, Pass]]) -> dict[str, Outcome]:
        """Nothing where they are to be executed one by one, be it to see whose mistake it is."""
        phases = Phases()
        try:
            runs = [self._resident(run_id, phases) for run_id, _ in passes]
            members = [(run.adapter, call) for run, (_, call) in zip(runs, passes, strict=True)]
            pays = self.fusing.pays(members)
            if pays is False:
                return {}
            results = run_together(self._layers, members, token_budget=self._token_budget.current(), phases=phases)
            if pays is None:
                alone = [self._alone(run, call) for run, (_, call) in zip(runs, passes, strict=True)]
                self.fusing.learn(members, results, alone)
                results = alone
        except Exception as error:
            log.warning("passes of %d runs are computed one by one: %s", len(passes), error)
            return {}
        return self._shared(runs, passes, results, phases, is_fused=bool(pays))

    def _shared(
        self,
        runs: Sequence[Run],
        passes: Sequence[tuple[str, Pass]],
        results: Sequence[PassResult | ModelError],
        phases: Phases,
        *,
        is_fused: bool,
    ) -> dict[str, Outcome]:
        """The outcome of each, with an even share of the time."""
        phases_s = {phase: seconds / len(runs) for phase, seconds in phases.seconds.items()}
        outcomes = {}
        for run, (run_id, call), result in zip(runs, passes, results, strict=True):
            outcome = failed(result) if isinstance(result, ModelError) else self._taken_over(run, call, result)
            outcomes[run_id] = replace(outcome, phases_s=phases_s, is_fused=is_fused)
            self._note_use(run_id)
        return outcomes

    def _alone(self, run: Run, call: Pass) -> PassResult | ModelError:
        try:
            return self.compute(run, call, Phases(), dropout_seed=run.random.current())
        except ModelError as error:
            return error

    def _note_use(self, run_id: str) -> None:
        run = self.runs[run_id]
        if run.away is None:
            self._residence.used(run_id, run.num_bytes)

    def _outcome(self, run_id: str, call: Call, phases: Phases) -> Outcome:
        try:
            return self._execute(self._resident(run_id, phases), call, phases)
        except ApiError as error:
            return failed(error)
        except Exception as error:  # one operation's failure is its own; the process goes on for the others
            if is_out_of_memory(error):
                return failed(out_of_memory(error))
            log.exception("%s of run %s failed", type(call).__name__, run_id)
            return failed(error)

    def _resident(self, run_id: str, phases: Phases) -> Run:
        """A run with its tensors in memory.

        Raises:
            ModelError: it had left, and cannot come back.
        """
        run = self.runs[run_id]
        if run.lost:
            raise ModelError(
                f"run {run_id} could not be brought back when the trainer was started anew: {run.lost}",
                error_class="RunLostError",
                hint="delete the run, and go on from its last checkpoint",
            )
        if run.away is not None:
            assert self._evicted is not None
            with phases.measure("restore"):
                self.restore(run, self._evicted.take(run_id))
                self._evicted.forget(run_id)
        return run

    def _execute(self, run: Run, call: Call, phases: Phases) -> Outcome:
        match call:
            case Pass():
                return self._pass(run, call, phases)
            case AdamSettings():
                with phases.measure("optimizer"):
                    return self._optim_step(run, call)
            case SaveState():
                with phases.measure("checkpoint"):
                    return self._save_state(run, call)
            case Publish():
                with phases.measure("checkpoint"):
                    return self._publish(run, call)
            case LoadState():
                with phases.measure("checkpoint"):
                    return self._load_state(run, call)
            case Reset():
                run.reset(call.lora_rank)
                return succeeded(empty=common_pb2.Empty())
            case ImportAdapter():
                with phases.measure("checkpoint"):
                    path = checkpoint.import_adapter(self.store, run, call)
                return succeeded(save_weights=pb.SaveWeightsResponse(path=str(path)))
            case Skip():
                return succeeded(empty=common_pb2.Empty())

    def _pass(self, run: Run, call: Pass, phases: Phases) -> Outcome:
        return self._taken_over(run, call, self.compute(run, call, phases, dropout_seed=run.random.current()))

    def _taken_over(self, run: Run, call: Pass, result: PassResult) -> Outcome:
        """What a pass changes in its run, which is all that it changes."""
        if result.gradients is not None:
            run.random = run.random.advanced()
            run.add_gradients(result.gradients)
        return computed(call, replace(result, gradients=None))  # those are the run's now

    def compute(self, run: Run, call: Pass, phases: Phases, *, dropout_seed: int) -> PassResult:
        """The whole of a pass; where several processes train together, they share it out here."""
        wanted = run.weights_of(call.adapter)
        result = run_pass(
            wanted or run.adapter,
            call,
            token_budget=self._token_budget.current(),
            dropout_seed=dropout_seed,
            layout=self._layout,
            adapter_off=wanted is None,
            phases=phases,
            on_out_of_memory=self._token_budget.ran_out,
        )
        self._token_budget.passed()
        return result

    def _optim_step(self, run: Run, call: AdamSettings) -> Outcome:
        if run.gradients is None:
            raise ModelError(
                "there is no gradient since the last optimizer step",
                error_class="NoGradientError",
                hint="call forward_backward before optim_step",
            )
        grad_norm = run.optimizer.step(run.gradients, call)
        run.gradients = None
        run.step += 1
        run.is_at_start = False
        metrics = {"grad_norm": grad_norm, "learning_rate": call.learning_rate, "step": float(run.step)}
        return succeeded(optim_step=pb.OptimStepResponse(metrics=metrics))

    def _save_state(self, run: Run, call: SaveState) -> Outcome:
        """With a weight-sync URI, also publishes what it saves."""
        if not self.publisher.has_sync:
            path = checkpoint.save_state(self.store, run, call)
            return succeeded(save_weights=pb.SaveWeightsResponse(path=str(path)))
        with self._numbered(run) as number:
            path = checkpoint.save_state(self.store, run, call, policy_version=number.version)
        return self._published(run, number, path=str(path))

    def _publish(self, run: Run, call: Publish) -> Outcome:
        if call.is_external:
            path = checkpoint.save_policy(self.store, run, call, policy_version=run.policy_version)
            return succeeded(save_weights=pb.SaveWeightsResponse(path=str(path)))
        with self._numbered(run) as number:
            version, history = number.version, number.history
            kept = (
                checkpoint.save_policy(self.store, run, call, policy_version=version, history=history)
                if call.name
                else ""
            )
        return self._published(run, number, path=str(kept))

    def _published(self, run: Run, number: Numbered, *, path: str) -> Outcome:
        policy = self.publisher.publish(run.config.run_id, number, run.adapter, project=run.config.project)
        run.policy_version = number.version
        response = pb.SaveWeightsResponse(path=path, policy_version=number.version)
        return succeeded(save_weights=response, policy=policy)

    @contextmanager
    def _numbered(self, run: Run) -> Iterator[Numbered]:
        """The run's next version, for what is written inside the block; a failure leaves no number without a policy."""
        number = self.publisher.reserve(run.config.run_id, above=run.policy_version, operation=run.operation)
        try:
            yield number
        except BaseException:
            self.publisher.give_back(run.config.run_id, number)
            raise

    def _load_state(self, run: Run, call: LoadState) -> Outcome:
        checkpoint.load_state(self.store, run, call)
        return succeeded(load_weights=pb.LoadWeightsResponse(path=str(call.path), step=run.step))
