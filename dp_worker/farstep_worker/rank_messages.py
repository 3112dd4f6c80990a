"""Calls as messages from rank 0 to the others, and back: the public contract's own messages, in one envelope.

Invariant: what `read_call` gives is what `to_command` was given.
"""

from __future__ import annotations

from typing import assert_never

from google.protobuf.message import Message

from farstep_proto.custom_loss import CustomLoss
from farstep_proto.paths import Verb
from farstep_proto.tensors import model_input_to_proto, tensor_to_proto
from farstep_proto.v1 import common_pb2, ranks_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.custom_data import own_inputs
from farstep_worker.runs import RunConfig
from farstep_worker.submission import AdamSettings, Example, Limits, LoadState, Pass, Reset, parse_call, request_type

ReplicatedCall = AdamSettings | LoadState | Reset


def to_creation(config: RunConfig, *, base_model: str) -> ranks_pb2.RankCommand:
    request = pb.CreateRunRequest(
        run_id=config.run_id,
        base_model=base_model,
        lora=config.lora.to_proto(),
        seed=config.seed,
        max_seq_len=config.max_seq_len,
        project=config.project,
    )
    return ranks_pb2.RankCommand(create_run=request)


def to_command(run_id: str, call: Pass | ReplicatedCall) -> ranks_pb2.RankCommand:
    verb, message = _to_message(call)
    execute = ranks_pb2.ExecuteOnRank(run_id=run_id, verb=verb, body=message.SerializeToString())
    return ranks_pb2.RankCommand(execute=execute)


def read_call(command: ranks_pb2.ExecuteOnRank, limits: Limits) -> Pass | ReplicatedCall:
    message = request_type(command.verb).FromString(command.body)
    if isinstance(message, pb.ForwardRequest) and not message.data:  # as no client may say it: an empty share
        backward = command.verb == Verb.FORWARD_BACKWARD
        custom = CustomLoss.from_proto(message.custom_loss) if message.HasField("custom_loss") else None
        return Pass(message.loss_fn, dict(message.loss_fn_config), (), backward, message.adapter, custom)
    call = parse_call(command.verb, message, limits)
    assert isinstance(call, Pass | ReplicatedCall), command.verb
    return call


def _to_message(call: Pass | ReplicatedCall) -> tuple[str, Message]:
    match call:
        case Pass():
            verb = Verb.FORWARD_BACKWARD if call.backward else Verb.FORWARD
            return verb, pb.ForwardRequest(
                data=[_to_datum(example, call.custom) for example in call.examples],
                loss_fn=call.loss_fn,
                loss_fn_config=call.config,
                adapter=call.adapter,
                custom_loss=call.custom.to_proto() if call.custom is not None else None,
            )
        case AdamSettings():
            return Verb.OPTIM_STEP, pb.OptimStepRequest(
                learning_rate=call.learning_rate,
                beta1=call.beta1,
                beta2=call.beta2,
                eps=call.eps,
                weight_decay=call.weight_decay,
                grad_clip_norm=call.grad_clip_norm,
            )
        case LoadState():
            return Verb.LOAD_STATE, pb.LoadStateRequest(path=str(call.path), optimizer=call.optimizer)
        case Reset():
            return Verb.RESET, pb.ResetRequest(lora_rank=call.lora_rank)
    assert_never(call)


def _to_datum(example: Example, custom: CustomLoss | None) -> common_pb2.Datum:
    given = own_inputs(example.inputs, custom) if custom is not None else example.inputs
    inputs = {key: tensor_to_proto(array) for key, array in given.items()}
    return common_pb2.Datum(model_input=model_input_to_proto(example.tokens), loss_fn_inputs=inputs)
