"""A trainer without a model, for the SDK to speak to: real HTTP and real operations, in seq order."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from farstep_proto import errors, paths, tensors
from farstep_proto.names import CheckpointPath
from farstep_proto.paths import Verb
from farstep_proto.v1 import common_pb2, control_pb2, training_pb2
from farstep_proto.v1 import operations_pb2 as ops
from farstep_serving.app import make_app
from farstep_serving.bodies import read_body
from farstep_serving.keys import KeyRing
from farstep_serving.messages import read_message, respond
from farstep_serving.operation_routes import operation_routes
from farstep_serving.operations import OperationTable
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import BASE_MODEL, KEY, MAX_SEQ_LEN, VOCAB_SIZE, Host, Server


def _tokenizer_files() -> dict[str, bytes]:
    """The smallest real tokenizer: whole words."""
    vocabulary = '{"[UNK]": 0, "one": 1, "two": 2, "three": 3}'
    tokenizer = (
        '{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,'
        ' "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,'
        f' "model": {{"type": "WordLevel", "vocab": {vocabulary}, "unk_token": "[UNK]"}}}}'
    )
    config = '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}'
    return {"tokenizer.json": tokenizer.encode(), "tokenizer_config.json": config.encode()}


TOKENIZER_FILES = _tokenizer_files()


@dataclass
class Run:
    created: training_pb2.Run
    next_seq: int = 1
    waiting: dict[int, tuple[str, Any]] = field(default_factory=dict)
    parts: dict[int, dict[int, Any]] = field(default_factory=dict)
    num_grads: int = 0


class Trainer(Server):
    """Its model: every log-probability is -1, every loss the number of tokens."""

    def __init__(self, host: Host, *, max_request_bytes: int = 1 << 20) -> None:
        self.host = host
        self.max_request_bytes = max_request_bytes
        self.runs: dict[str, Run] = {}
        self.executed: list[tuple[str, int, str, Any]] = []
        self.checkpoints: dict[str, control_pb2.Checkpoint] = {}
        self.fail_next: BaseException | None = None
        self.publish_to: Sampler | None = None
        self.is_held = False
        self.loses_parts = False
        super().__init__(host)

    def make_app(self) -> ASGIApp:
        self.table = OperationTable(queue_place=lambda operation_id: 3)
        return make_app(
            [
                Route(paths.HEALTH, self._health),
                Route(paths.INFO, self._info),
                Route(paths.TOKENIZER, self._tokenizer),
                Route(paths.RUNS, self._create_run, methods=["POST"]),
                Route(paths.RUNS, self._list_runs, methods=["GET"]),
                Route(paths.RUN, self._get_run, methods=["GET"]),
                Route(paths.RUN, self._delete_run, methods=["DELETE"]),
                Route(paths.CHECKPOINT, self.get_checkpoint),
                Route(paths.RUN_OPERATIONS, self._list_operations),
                Route(paths.VERB, self._submit, methods=["POST"]),
                *operation_routes(self.table, cancel=self._cancel),
            ],
            keys=KeyRing.of(KEY),
        )

    def restart(self) -> None:
        """Forgets every operation, as a process without a journal does."""

        def begin_anew() -> None:
            old, self.app = self.table, self.make_app()
            for channel in old._channels.values():  # its connections end with it
                channel.changed.set()

        self.host.call(begin_anew)

    def hold(self) -> None:
        self.is_held = True

    def release(self) -> None:
        def go_on() -> None:
            self.is_held = False
            for run in self.runs.values():
                self._advance(run)

        self.host.call(go_on)

    async def _health(self, request: Request) -> Response:
        return Response("ok")

    async def _info(self, request: Request) -> Response:
        info = training_pb2.ServerInfo(
            role="trainer",
            base_model=BASE_MODEL,
            device="cpu",
            max_seq_len=MAX_SEQ_LEN,
            vocab_size=VOCAB_SIZE,
            max_request_bytes=self.max_request_bytes,
            loss_fns=["cross_entropy", "ppo"],
            instance_id=self.table.instance_id,
            version="1",
        )
        return respond(request, info)

    async def _tokenizer(self, request: Request) -> Response:
        return respond(request, training_pb2.TokenizerFiles(files=TOKENIZER_FILES, sha256="0" * 64))

    async def get_checkpoint(self, request: Request) -> Response:
        path = "bt://loops:{run_id}/{kind}/{name}".format(**request.path_params)
        if path not in self.checkpoints:
            raise errors.NotFound(f"no checkpoint {path}", field="path")
        return respond(request, self.checkpoints[path])

    async def _create_run(self, request: Request) -> Response:
        message = await read_message(request, training_pb2.CreateRunRequest)
        if message.base_model != BASE_MODEL:
            raise errors.InvalidInput(f"this worker serves {BASE_MODEL}", field="base_model")
        run = self.runs.get(message.run_id)
        if run is None:
            created = training_pb2.Run(
                run_id=message.run_id,
                base_model=BASE_MODEL,
                lora=message.lora,
                seed=message.seed,
                max_seq_len=message.max_seq_len or MAX_SEQ_LEN,
                vocab_size=VOCAB_SIZE,
                next_seq=1,
                project=message.project,
            )
            run = self.runs[message.run_id] = Run(created)
        return respond(request, run.created)

    async def _list_runs(self, request: Request) -> Response:
        return respond(request, training_pb2.ListRunsResponse(runs=[run.created for run in self.runs.values()]))

    async def _get_run(self, request: Request) -> Response:
        run = self._run(request)
        missing = [seq for seq in range(run.next_seq, run.created.next_seq) if seq not in run.waiting]
        described = training_pb2.Run()
        described.CopyFrom(run.created)
        described.missing_seqs.extend(missing)
        return respond(request, described)

    async def _list_operations(self, request: Request) -> Response:
        """Two a page."""
        after = int(request.query_params.get("page", 0))
        operations = self.table.list_of(f"{self._run(request).created.run_id}:", unfetched=True)
        rest = [each for each in operations if int(each.operation_id.rpartition(":")[2]) > after]
        next_page = rest[1].operation_id.rpartition(":")[2] if len(rest) > 2 else ""
        return respond(request, ops.ListOperationsResponse(operations=rest[:2], next_page=next_page))

    async def _delete_run(self, request: Request) -> Response:
        del self.runs[self._run(request).created.run_id]
        return respond(request, common_pb2.Empty())

    def _run(self, request: Request) -> Run:
        run = self.runs.get(request.path_params["run_id"])
        if run is None:
            raise errors.NotFound("no such run", field="run_id")
        return run

    async def _submit(self, request: Request) -> Response:
        run, verb = self._run(request), request.path_params["verb"]
        seq = int(request.query_params["seq"])
        part, num_parts = int(request.query_params.get("part", 0)), int(request.query_params.get("parts", 1))
        body = await read_body(request, limit=self.max_request_bytes)
        operation_id = f"{run.created.run_id}:{seq}"
        accepted = ops.Accepted(operation_id=operation_id)
        run.parts.setdefault(seq, {})[part] = body
        if self.loses_parts and part == 1:
            self.loses_parts = False
            run.parts.pop(seq)
            accepted.awaits_parts = True
            return respond(request, accepted, status=202)
        if len(run.parts[seq]) < num_parts:
            accepted.awaits_parts = True
            return respond(request, accepted, status=202)
        bodies = [run.parts[seq][index] for index in range(num_parts)]
        digest = hashlib.sha256(verb.encode() + b"".join(bodies)).digest()
        if self.table.open(operation_id, client_id=request.headers[paths.CLIENT_ID], verb=verb, digest=digest):
            run.waiting[seq] = (verb, bodies)
            run.created.next_seq = max(run.created.next_seq, seq + 1)
            asyncio.get_running_loop().call_soon(self._advance, run)
        return respond(request, accepted, status=202)

    def _cancel(self, operation_id: str) -> bool:
        run_id, _, seq = operation_id.rpartition(":")
        return self.runs[run_id].waiting.pop(int(seq), None) is not None

    def _advance(self, run: Run) -> None:
        while not self.is_held and run.next_seq in run.waiting:
            seq, run.next_seq = run.next_seq, run.next_seq + 1
            verb, bodies = run.waiting.pop(seq)
            operation_id = f"{run.created.run_id}:{seq}"
            self.table.set_running(operation_id)
            try:
                outcome = self._execute(run, verb, bodies)
            except Exception as error:
                self.table.fail(operation_id, errors.error_from_exception(error))
            else:
                outcome.state = ops.OPERATION_STATE_SUCCEEDED
                self.table.finish(operation_id, outcome)

    def _execute(self, run: Run, verb: str, bodies: list[bytes]) -> ops.Operation:
        if self.fail_next is not None and verb != Verb.SKIP:
            error, self.fail_next = self.fail_next, None
            raise error
        kind: Any = {
            Verb.FORWARD: training_pb2.ForwardRequest,
            Verb.FORWARD_BACKWARD: training_pb2.ForwardRequest,
            Verb.OPTIM_STEP: training_pb2.OptimStepRequest,
            Verb.SAVE_STATE: training_pb2.SaveStateRequest,
            Verb.PUBLISH: training_pb2.PublishRequest,
            Verb.LOAD_STATE: training_pb2.LoadStateRequest,
            Verb.RESET: training_pb2.ResetRequest,
            Verb.SKIP: training_pb2.SkipRequest,
        }[verb]
        messages = [kind.FromString(body) for body in bodies]
        self.executed.append((run.created.run_id, run.next_seq - 1, verb, messages))
        return getattr(self, f"_do_{verb}")(run, messages)

    def _do_forward_backward(self, run: Run, messages: list[training_pb2.ForwardRequest]) -> ops.Operation:
        run.num_grads += 1
        return self._do_forward(run, messages)

    def _do_forward(self, run: Run, messages: list[training_pb2.ForwardRequest]) -> ops.Operation:
        output = training_pb2.ForwardBackwardOutput(loss=2.5)
        for datum in (datum for message in messages for datum in message.data):
            length = len(tensors.model_input_ids(datum.model_input))
            output.loss_fn_outputs.add().fields["logprobs"].CopyFrom(tensors.tensor_to_proto(-np.ones(length)))
            output.metrics["loss:sum"] += length
        return ops.Operation(forward_backward=output)

    def _do_optim_step(self, run: Run, messages: list[training_pb2.OptimStepRequest]) -> ops.Operation:
        if not run.num_grads:
            raise errors.ModelError("no gradient since the last step", error_class="NoGradientError", hint="first …")
        run.num_grads = 0
        run.created.step += 1
        metrics = {"grad_norm": 0.5, "learning_rate": messages[0].learning_rate, "step": run.created.step}
        return ops.Operation(optim_step=training_pb2.OptimStepResponse(metrics=metrics))

    def _do_save_state(self, run: Run, messages: list[training_pb2.SaveStateRequest]) -> ops.Operation:
        path = self._keep(run, "weights", messages[0].name)
        return ops.Operation(save_weights=training_pb2.SaveWeightsResponse(path=path))

    def _do_publish(self, run: Run, messages: list[training_pb2.PublishRequest]) -> ops.Operation:
        run.created.policy_version += 1
        version = run.created.policy_version
        path = self._keep(run, "sampler_weights", messages[0].name) if messages[0].name else ""
        if self.publish_to is not None:
            self.publish_to.policies[run.created.run_id] = version
        return ops.Operation(save_weights=training_pb2.SaveWeightsResponse(path=path, policy_version=version))

    def _do_load_state(self, run: Run, messages: list[training_pb2.LoadStateRequest]) -> ops.Operation:
        if messages[0].path not in self.checkpoints:
            raise errors.NotFound(f"no checkpoint {messages[0].path}", field="path")
        run.created.step = self.checkpoints[messages[0].path].step if messages[0].optimizer else 0
        response = training_pb2.LoadWeightsResponse(path=messages[0].path, step=run.created.step)
        return ops.Operation(load_weights=response)

    def _do_reset(self, run: Run, messages: list[training_pb2.ResetRequest]) -> ops.Operation:
        run.created.lora.rank, run.created.step = messages[0].lora_rank, 0
        return ops.Operation(empty=common_pb2.Empty())

    def _do_skip(self, run: Run, messages: list[training_pb2.SkipRequest]) -> ops.Operation:
        return ops.Operation(empty=common_pb2.Empty())

    def _keep(self, run: Run, kind: Any, name: str) -> str:
        path = CheckpointPath(run.created.run_id, kind, name)
        self.checkpoints[str(path)] = control_pb2.Checkpoint(
            checkpoint_id=path.checkpoint_id,
            run_id=path.run_id,
            target="trainer" if kind == "weights" else "sampler",
            path=str(path),
            created_at=1e9,
            size_bytes=7,
            base_model=BASE_MODEL,
            lora_adapter_config=run.created.lora,
            step=run.created.step,
            sha256s={"adapter_model.safetensors": "ab"},
        )
        return str(path)
