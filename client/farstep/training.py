"""`TrainingClient`: one run on one dp_worker.

Every call submits at once and gives a `Future`; the server runs a run's operations in the order of the
calls. It holds no weights, and decides nothing about training.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from farstep import _convert
from farstep._adapter_files import AdapterFiles
from farstep._address import Address
from farstep._checkpoint_requests import CheckpointRequests, checked_path
from farstep._connection import Connection
from farstep._control import ControlPlane
from farstep._convert import Decode
from farstep._custom_loss import CustomLoss
from farstep._freshness import Freshness, FreshSampling
from farstep._loop import awaiting, blocking, run
from farstep._meter import RunMeter, succeeded
from farstep._passes import AdapterChoice, Passes
from farstep._submission import OnArrival, RunSubmitter
from farstep._tokenizer import tokenizer_of
from farstep._wandb import WandbStream
from farstep.checkpoints import Checkpoint, CheckpointArchive
from farstep.errors import InvalidInputError, NotFoundError, checked
from farstep.future import Future
from farstep.results import (
    ForwardBackwardOutput,
    LoadWeightsResponse,
    OptimStepResponse,
    SaveWeightsResponse,
    TrainingInfo,
)
from farstep.sampling import Pin, SamplingClient, Target, open_sampling_client, sampler_path
from farstep.types import AdamParams, Datum
from farstep_proto.names import CheckpointPath, check_name
from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2, training_pb2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_DEFAULT_ADAM = AdamParams()


class TrainingClient(FreshSampling):
    """Made by a ServiceClient.

    Every `result()` raises RemoteOpError where the operation failed, UnknownRequestError where the server no
    longer knows it, and ServerShutdownError where the server went down first.
    """

    def __init__(
        self,
        trainer: Connection,
        created: training_pb2.Run,
        *,
        sampler: Address | None,
        control: ControlPlane | None,
        wandb: WandbStream | None,
        max_request_bytes: int,
        max_datum_bytes: int,
    ) -> None:
        """Takes over the caller's hold on `trainer`."""
        self._trainer = trainer
        self._run = created
        self._sampler = sampler
        self._control = control
        self._checkpoints = CheckpointRequests(control.connection if control is not None else trainer)
        self._wandb = wandb
        self._max_request_bytes = max_request_bytes
        self._freshness = Freshness()
        self._meter = RunMeter(step=created.step, policy_version=created.policy_version)
        self._submitter = RunSubmitter(
            trainer,
            created.run_id,
            next_seq=created.next_seq,
            missing_seqs=created.missing_seqs,
            describe=self._meter.describe,
        )
        self._passes = Passes(
            created,
            self._submitter,
            self._meter,
            max_request_bytes=max_request_bytes,
            max_datum_bytes=max_datum_bytes,
        )

    @property
    def run_id(self) -> str:
        return self._run.run_id

    @property
    def policy_version(self) -> int:
        """The version published last; 0 before the first publication."""
        return self._meter.policy_version

    @property
    def step(self) -> int:
        """Optimizer steps whose results have arrived."""
        return self._meter.step

    @property
    def next_seq(self) -> int:
        """The place in its run that the next call's operation will have; the first call's has 1.

        A loop that makes the same calls for each step knows by it, after `resume_run`, which one comes next.
        """
        return self._submitter.next_seq

    def _forward_backward(
        self,
        data: Iterable[Datum],
        loss_fn: str = "cross_entropy",
        loss_fn_config: Mapping[str, float] | None = None,
    ) -> Coroutine[Any, Any, Future[ForwardBackwardOutput]]:
        """Adds the gradient of a sum over tokens to the run's buffer.

        `data` of any size travels in as many requests as it takes, as one operation. If that fails, the
        buffer is as it was before. The losses, their inputs and settings: `farstep_proto.loss_table`. Data of a loss
        over pairs alternate: chosen, rejected, chosen, …; `value` is for runs with a value head.

        Raises:
            InvalidInputError: naming the datum and the key; nothing was submitted.
        """
        self._refuse_closed()
        return self._passes.submit(Verb.FORWARD_BACKWARD, data, loss_fn, loss_fn_config)

    forward_backward = blocking(_forward_backward)
    forward_backward_async = awaiting(_forward_backward)

    def _forward(
        self,
        data: Iterable[Datum],
        loss_fn: str = "cross_entropy",
        loss_fn_config: Mapping[str, float] | None = None,
        *,
        adapter: AdapterChoice = "current",
    ) -> Coroutine[Any, Any, Future[ForwardBackwardOutput]]:
        """The same without a gradient; the run's buffer is untouched. `value` needs no inputs here: it gives values.

        Args:
            adapter: "base": with the adapter off. "start": with the weights that the run began with, as the reference
                of a preference or KL loss. A run begins when it is created or reset (its adapter then computes what
                the base model does), or with a checkpoint's weights loaded before its first optimizer step; a
                checkpoint loaded with its optimizer brings along the beginning of the run that it is of.
        """
        self._refuse_closed()
        return self._passes.submit(Verb.FORWARD, data, loss_fn, loss_fn_config, adapter=adapter)

    forward = blocking(_forward)
    forward_async = awaiting(_forward)

    def _forward_backward_custom(
        self, data: Iterable[Datum], loss_fn: CustomLoss
    ) -> Coroutine[Any, Any, Future[ForwardBackwardOutput]]:
        """Adds the gradient of a loss that is computed here, in torch, from the log-probabilities of the targets.

        Two passes: one forward for the log-probabilities, one with the gradient that the function's result has by
        them. This call returns when the function has run and the second is submitted; nothing comes between the two,
        so that operations submitted meanwhile wait.

        Args:
            data: with `target_tokens`; what else the loss inputs hold is for the function alone and is not sent.
            loss_fn: `loss_fn(data, logprobs) -> (loss, metrics)` on another thread. `logprobs` are a leaf tensor for
                each datum, [T] or [T, K] as its targets, 0 where a target is ignored; the loss is a scalar tensor.

        The result has the function's loss and metrics, and `surrogate_loss:sum`, what the second pass differentiated.

        Raises:
            MissingExtraError: torch is not installed.
            RemoteOpError: the first pass failed.
            InvalidInputError: the loss, or its gradient, is not finite, or depends on no log-probability.
            Exception: whatever the function raises; the client goes on as if the call had not been made.
        """
        self._refuse_closed()
        return self._passes.submit_custom(data, loss_fn)

    forward_backward_custom = blocking(_forward_backward_custom)
    forward_backward_custom_async = awaiting(_forward_backward_custom)

    def _optim_step(self, adam_params: AdamParams = _DEFAULT_ADAM) -> Coroutine[Any, Any, Future[OptimStepResponse]]:
        """One step of Adam on the gradients added since the step before; clears them.

        The result's metrics have `grad_norm`, `learning_rate` and `step`. Without a gradient since the last
        step, `result()` raises RemoteOpError.
        """
        message = _convert.adam_to_proto(adam_params)
        return self._submit(Verb.OPTIM_STEP, message, _convert.optim_step_response, self._on_step)

    optim_step = blocking(_optim_step)
    optim_step_async = awaiting(_optim_step)

    def _save_state(
        self,
        name: str,
        *,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
    ) -> Coroutine[Any, Any, Future[SaveWeightsResponse]]:
        """Keeps a training checkpoint: adapter, Adam moments, step count, RNG, metadata; whole or not at all.

        Args:
            name: 1 to 128 letters, digits, `.`, `_`, `-`; taken names are refused without `overwrite`.
            ttl_seconds: kept for so long; None: until it is deleted.
        """
        with checked():
            check_name(name)
        message = training_pb2.SaveStateRequest(
            name=name,
            metadata=_convert.text_map("metadata", metadata),
            ttl_seconds=_convert.ttl(ttl_seconds),
            overwrite=overwrite,
        )
        return self._submit(Verb.SAVE_STATE, message, _convert.save_weights_response, self._on_publication)

    save_state = blocking(_save_state)
    save_state_async = awaiting(_save_state)

    def _save_weights_for_sampler(
        self, name: str, *, ttl_seconds: int | None = None
    ) -> Coroutine[Any, Any, Future[SaveWeightsResponse]]:
        """Publishes the adapter as the next policy version and keeps it as a checkpoint; waits for no sampler."""
        with checked():
            check_name(name)
        return self._publish(name, ttl_seconds)

    save_weights_for_sampler = blocking(_save_weights_for_sampler)
    save_weights_for_sampler_async = awaiting(_save_weights_for_sampler)

    def _save_weights_and_get_sampling_client(
        self, name: str | None = None, *, pin: Pin = "min"
    ) -> Coroutine[Any, Any, SamplingClient]:
        """Publishes, waits until a replica serves the new version, and gives a client pinned to it.

        Args:
            name: None publishes without keeping a checkpoint.
            pin: "min": this version or a newer one answers; "exact": this one alone.

        Raises:
            PublishTimeoutError: a RuntimeError; after 600 s no replica serves it.
        """
        if pin not in ("min", "exact"):
            raise InvalidInputError(f"{pin!r} is neither 'min' nor 'exact'", field="pin")
        if name is not None:
            with checked():
                check_name(name)
        sampler = self._paired_sampler()
        return self._published(self._publish(name or "", None), sampler, pin)

    save_weights_and_get_sampling_client = blocking(_save_weights_and_get_sampling_client)
    save_weights_and_get_sampling_client_async = awaiting(_save_weights_and_get_sampling_client)

    def _load_state(self, path: str) -> Coroutine[Any, Any, Future[LoadWeightsResponse]]:
        """Takes over a checkpoint's weights, with an empty optimizer."""
        return self._load(path, optimizer=False)

    load_state = blocking(_load_state)
    load_state_async = awaiting(_load_state)

    def _load_state_with_optimizer(self, path: str) -> Coroutine[Any, Any, Future[LoadWeightsResponse]]:
        """Takes over a training checkpoint's weights, Adam moments, step count and RNG: bit-exact resumption."""
        return self._load(path, optimizer=True)

    load_state_with_optimizer = blocking(_load_state_with_optimizer)
    load_state_with_optimizer_async = awaiting(_load_state_with_optimizer)

    def _reset(self, lora_rank: int) -> Coroutine[Any, Any, Future[None]]:
        """A fresh adapter of that rank and an empty optimizer, on the same trainer."""
        rank = _convert.whole_number("lora_rank", lora_rank, at_least=1)

        def on_arrival(operation: operations_pb2.Operation) -> None:
            if succeeded(operation):
                self._run.lora.rank = rank
                self._meter.restart(step=0)

        message = training_pb2.ResetRequest(lora_rank=rank)
        return self._submit(Verb.RESET, message, _convert.nothing, on_arrival)

    reset = blocking(_reset)
    reset_async = awaiting(_reset)

    def _create_sampling_client(self, model_path: str) -> Coroutine[Any, Any, SamplingClient]:
        """A client of the paired sampler, for exactly that `sampler_weights` checkpoint."""
        path = sampler_path(model_path)
        target = Target(model_path=path, base_model=self._run.base_model)
        return open_sampling_client(self._paired_sampler(), self._trainer.key, target)

    create_sampling_client = blocking(_create_sampling_client)
    create_sampling_client_async = awaiting(_create_sampling_client)

    def _list_checkpoints(self) -> Coroutine[Any, Any, list[Checkpoint]]:
        """This run's checkpoints, oldest first."""
        return self._checkpoints.list(self.run_id)

    list_checkpoints = blocking(_list_checkpoints)
    list_checkpoints_async = awaiting(_list_checkpoints)

    def _get_checkpoint_archive_url(self, checkpoint_id: str) -> Coroutine[Any, Any, CheckpointArchive]:
        """Addresses of every file of a checkpoint, by its id or path."""
        return self._checkpoints.archive(checked_path(checkpoint_id))

    get_checkpoint_archive_url = blocking(_get_checkpoint_archive_url)
    get_checkpoint_archive_url_async = awaiting(_get_checkpoint_archive_url)

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer; needs the extra `farstep[tokenizers]`. Loaded once."""
        return tokenizer_of(self._trainer)

    def get_info(self) -> TrainingInfo:
        """Base model, rank and limits, without a round trip."""
        created, lora = self._run, self._run.lora
        return TrainingInfo(
            created.run_id, created.base_model, lora.rank, created.max_seq_len, created.vocab_size, lora.value_head
        )

    def health(self) -> bool:
        """Whether the trainer answers now."""
        return run(self._trainer.is_healthy())

    def ensure_ready(self, timeout: float = 60.0) -> None:
        """Returns when the trainer answers; raises ResultTimeout where it does not in time."""
        run(self._trainer.check_health(timeout))

    async def _release(self) -> None:
        if self._wandb is not None:
            await asyncio.to_thread(self._wandb.finish)
        if self._control is not None:
            await self._control.connection.release()
        await self._submitter.aclose()
        await self._trainer.release()

    def _submit(
        self, verb: str, message: Message, decode: Decode[T], on_arrival: OnArrival
    ) -> Coroutine[Any, Any, Future[T]]:
        self._refuse_closed()
        seq = self._submitter.take()[0]
        self._freshness.submitted(verb, seq)
        return self._submitter.submit(verb, [message.SerializeToString()], decode, seq=seq, on_arrival=on_arrival)

    def _import(self, files: AdapterFiles, name: str) -> Coroutine[Any, Any, Future[SaveWeightsResponse]]:
        """Keeps an adapter from elsewhere under this run's id; the run stays as it is."""
        bodies = files.parts(name, max_request_bytes=self._max_request_bytes)
        return self._submitter.submit(Verb.IMPORT_ADAPTER, bodies, _convert.save_weights_response)

    def _publish(self, name: str, ttl_seconds: int | None) -> Coroutine[Any, Any, Future[SaveWeightsResponse]]:
        message = training_pb2.PublishRequest(name=name, ttl_seconds=_convert.ttl(ttl_seconds))
        return self._submit(Verb.PUBLISH, message, _convert.save_weights_response, self._on_publication)

    def _load(self, path: str, *, optimizer: bool) -> Coroutine[Any, Any, Future[LoadWeightsResponse]]:
        with checked():
            checkpoint = CheckpointPath.parse(path)

        def on_arrival(operation: operations_pb2.Operation) -> None:
            if succeeded(operation):
                self._meter.restart(step=operation.load_weights.step)

        message = training_pb2.LoadStateRequest(path=str(checkpoint), optimizer=optimizer)
        return self._submit(Verb.LOAD_STATE, message, _convert.load_weights_response, on_arrival)

    def _on_step(self, operation: operations_pb2.Operation) -> None:
        if succeeded(operation):
            record = self._meter.count_step(operation.optim_step)
            if self._wandb is not None:
                self._wandb.put(record)

    def _on_publication(self, operation: operations_pb2.Operation) -> None:
        if succeeded(operation):
            self._meter.count_publication(operation.save_weights)
            self._freshness.published(operation)

    def _on_arrival_of(self, verb: str) -> OnArrival | None:
        match verb:
            case Verb.OPTIM_STEP:
                return self._on_step
            case Verb.PUBLISH | Verb.SAVE_STATE:
                return self._on_publication
            case _:
                return None

    def _paired_sampler(self) -> Address:
        if self._sampler is None:
            raise NotFoundError(f"{self.run_id} has no paired sampler", hint="create the run with with_sampler=True")
        return self._sampler

    def __repr__(self) -> str:
        return f"<TrainingClient {self.run_id} of {self._run.base_model} on {self._trainer.url}, step {self.step}>"
