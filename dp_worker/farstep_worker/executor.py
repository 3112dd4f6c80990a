"""What each verb does to a run. All of it happens on the torch thread, one call at a time.

It knows neither HTTP nor the queue: a call goes in, an outcome comes out. Whatever goes wrong in a call
becomes its outcome; the next call finds the run as it was before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from google.protobuf.message import Message

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.policy_numbers import Numbered
from farstep_model.load import BaseModel
from farstep_model.lora import LoraLayers
from farstep_model.metrics import mean_loss
from farstep_proto.errors import ApiError, ModelError, error_from_exception
from farstep_proto.tensors import tensor_to_proto
from farstep_proto.v1 import common_pb2, operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker import checkpoint
from farstep_worker.feed import Policy
from farstep_worker.gradients import PassResult, run_pass
from farstep_worker.phases import Phases
from farstep_worker.publisher import Publisher
from farstep_worker.runs import Run, RunConfig
from farstep_worker.submission import AdamSettings, Call, LoadState, Pass, Publish, Reset, SaveState, Skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An operation's end, the policy to offer to samplers, if it published one, and where its time went.

    `encode` makes its message. That is for whoever has the time for it, on any thread, but the one that computes.
    """

    encode: Callable[[], operations_pb2.Operation]
    policy: Policy | None = None
    phases_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def operation(self) -> operations_pb2.Operation:
        """The message, made anew; never raises."""
        try:
            return self.encode()
        except Exception as error:
            log.exception("an outcome cannot be encoded")
            return failed(error).encode()


class Executor:
    """All runs on one base model.

    Args:
        token_budget: padded tokens of a micro-batch.
        publisher: where policies go; by default to the store's shelf.
    """

    def __init__(
        self, layers: LoraLayers, store: CheckpointStore, *, token_budget: int, publisher: Publisher | None = None
    ) -> None:
        self.runs: dict[str, Run] = {}
        self._layers = layers
        self.store = store
        self.publisher = publisher or Publisher(store)
        self._token_budget = token_budget

    @property
    def base(self) -> BaseModel:
        return self._layers.base

    def create_run(self, config: RunConfig) -> Run:
        run = Run.start(self._layers, config)
        self.runs[config.run_id] = run
        return run

    def execute(self, run_id: str, call: Call) -> Outcome:
        """Runs one call to its end; never raises."""
        phases = Phases()
        return replace(self._outcome(run_id, call, phases), phases_s=phases.seconds)

    def _outcome(self, run_id: str, call: Call, phases: Phases) -> Outcome:
        try:
            return self._execute(self.runs[run_id], call, phases)
        except torch.OutOfMemoryError as error:
            return failed(_out_of_memory(error, self._token_budget))
        except ApiError as error:
            return failed(error)
        except Exception as error:  # one operation's failure is its own; the process goes on for the others
            log.exception("%s of run %s failed", type(call).__name__, run_id)
            return failed(error)

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
                return _succeeded(empty=common_pb2.Empty())
            case Skip():
                return _succeeded(empty=common_pb2.Empty())

    def _pass(self, run: Run, call: Pass, phases: Phases) -> Outcome:
        result = self.compute(run, call, phases, dropout_seed=run.random.current())
        if result.gradients is not None:
            run.random = run.random.advanced()
            run.add_gradients(result.gradients)
        return Outcome(partial(_encode_pass, call, replace(result, gradients=None)))  # those are the run's now

    def compute(self, run: Run, call: Pass, phases: Phases, *, dropout_seed: int) -> PassResult:
        """The whole of a pass; where several processes train together, they share it out here."""
        wanted = run.weights_of(call.adapter)
        return run_pass(
            wanted or run.adapter,
            call,
            token_budget=self._token_budget,
            dropout_seed=dropout_seed,
            adapter_off=wanted is None,
            phases=phases,
        )

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
        return _succeeded(optim_step=pb.OptimStepResponse(metrics=metrics))

    def _save_state(self, run: Run, call: SaveState) -> Outcome:
        """With a weight-sync URI, also publishes what it saves."""
        if not self.publisher.has_sync:
            path = checkpoint.save_state(self.store, run, call)
            return _succeeded(save_weights=pb.SaveWeightsResponse(path=str(path)))
        with self._numbered(run) as number:
            path = checkpoint.save_state(self.store, run, call, policy_version=number.version)
        return self._published(run, number, path=str(path))

    def _publish(self, run: Run, call: Publish) -> Outcome:
        with self._numbered(run) as number:
            version, history = number.version, number.history
            path = (
                checkpoint.save_policy(self.store, run, call, policy_version=version, history=history)
                if call.name
                else ""
            )
        return self._published(run, number, path=str(path))

    def _published(self, run: Run, number: Numbered, *, path: str) -> Outcome:
        policy = self.publisher.publish(run.config.run_id, number, run.adapter)
        run.policy_version = number.version
        response = pb.SaveWeightsResponse(path=path, policy_version=number.version)
        return _succeeded(save_weights=response, policy=policy)

    @contextmanager
    def _numbered(self, run: Run) -> Iterator[Numbered]:
        """The run's next version, for what is written inside the block; a failure leaves no number without a policy."""
        number = self.publisher.reserve(run.config.run_id, above=run.policy_version)
        try:
            yield number
        except BaseException:
            self.publisher.give_back(run.config.run_id, number)
            raise

    def _load_state(self, run: Run, call: LoadState) -> Outcome:
        checkpoint.load_state(self.store, run, call)
        return _succeeded(load_weights=pb.LoadWeightsResponse(path=str(call.path), step=run.step))


def failed(error: Exception) -> Outcome:
    state = operations_pb2.OPERATION_STATE_FAILED
    operation = operations_pb2.Operation(state=state, error=error_from_exception(error))
    return Outcome(lambda: operation)


def _succeeded(*, policy: Policy | None = None, **outcome: Message) -> Outcome:
    operation = _success(**outcome)
    return Outcome(lambda: operation, policy)


def _success(**outcome: Message) -> operations_pb2.Operation:
    """`outcome` is the one field of `Operation` that the verb answers with."""
    operation = operations_pb2.Operation(state=operations_pb2.OPERATION_STATE_SUCCEEDED)
    for name, message in outcome.items():
        getattr(operation, name).CopyFrom(message)
    return operation


def _encode_pass(call: Pass, result: PassResult) -> operations_pb2.Operation:
    return _success(forward_backward=_to_proto(call, result))


def _out_of_memory(error: torch.OutOfMemoryError, token_budget: int) -> ModelError:
    return ModelError(
        f"the device has too little memory for this: {error}",
        error_class="OutOfMemoryError",
        hint=f"send shorter sequences, or start the trainer with a --token-budget below {token_budget}",
    )


def _to_proto(call: Pass, result: PassResult) -> pb.ForwardBackwardOutput:
    return pb.ForwardBackwardOutput(
        loss=mean_loss(result.metrics, normalizer=call.config.get("normalizer", 1.0)),
        metrics=result.metrics,
        loss_fn_outputs=[pb.DatumOutput(fields={"logprobs": tensor_to_proto(array)}) for array in result.logprobs],
    )
