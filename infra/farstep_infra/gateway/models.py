"""Models of the Tinker wire: made afresh or from a checkpoint, and described. A model is a run; its id is the run's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control.control import control_of
from farstep_infra.control.idempotency import Once
from farstep_infra.control.tables import TinkerModelRow
from farstep_infra.gateway import optimizers
from farstep_infra.gateway.bodies import Body, answer, media, read_json
from farstep_infra.gateway.failures import PREFIX, ErrorBody, Failure, failure_of
from farstep_infra.gateway.gateway import Gateway, gateway_of
from farstep_infra.gateway.operations import Call, promise
from farstep_infra.gateway.request_ids import RequestId, model_id_of
from farstep_infra.gateway.results import Done, Failed, Pending, Promised, Result
from farstep_infra.gateway.sessions import metadata_of
from farstep_proto.errors import ApiError, InvalidInput, NotFound
from farstep_proto.names import CheckpointPath
from farstep_proto.paths import Verb
from farstep_proto.v1 import common_pb2, control_pb2, training_pb2
from farstep_serving.descriptions import describe
from farstep_serving.keys import Caller, caller_of

Seq = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_DEFAULT_RANK = 32


class LoraConfig(Body):
    rank: Annotated[int, Field(ge=0, lt=2**31)] = _DEFAULT_RANK
    seed: Seed | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class CreateModel(Body):
    session_id: str
    model_seq_id: Seq
    base_model: str
    lora_config: LoraConfig | None = None
    optimizer_config: dict[str, Any] | None = None
    user_metadata: dict[str, Any] | None = None


class LoadWeights(Body):
    """In place with `model_id` and `seq_id`; into a new model with `session_id` and `model_seq_id`."""

    path: str
    optimizer: bool = False
    model_id: str | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: Seq | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: dict[str, Any] | None = None
    weights_access_token: str | None = None


class CreatedModel(Body):
    model_id: str
    type: Literal["create_model"] = "create_model"


class LoadedWeights(Body):
    path: str
    model_id: str
    type: Literal["load_weights"] = "load_weights"


class GetInfo(Body):
    model_id: str


class ModelData(Body):
    arch: str | None = None
    model_name: str
    tokenizer_id: str


class OptimizerConfig(Body):
    type: str


class Info(Body):
    model_data: ModelData
    model_id: str
    is_lora: bool = True
    lora_rank: int
    model_name: str
    optimizer_config: OptimizerConfig
    type: Literal["get_info"] = "get_info"


@describe(
    "Create a Tinker model", takes=media(CreateModel), gives=media(Promised), error=media(ErrorBody), errors=[NotFound]
)
async def _create(request: Request) -> Response:
    asked = await read_json(request, CreateModel)

    async def wanted() -> tuple[control_pb2.ProvisionRunRequest, TinkerModelRow]:
        optimizers.check_optimizer(asked.optimizer_config)
        control_of(request).fleet.served.check_served(asked.base_model)
        lora = asked.lora_config or LoraConfig()
        message = control_pb2.ProvisionRunRequest(
            base_model=asked.base_model,
            lora=common_pb2.LoraConfig(
                rank=lora.rank,
                train_attn=lora.train_attn,
                train_mlp=lora.train_mlp,
                train_unembed=lora.train_unembed,
            ),
            seed=lora.seed,
            with_sampler=True,
            user_metadata=metadata_of(asked.user_metadata),
        )
        return message, TinkerModelRow()

    return answer(await _begun(request, asked.session_id, asked.model_seq_id, wanted))


@describe(
    "Load weights into a Tinker model",
    takes=media(LoadWeights),
    gives=media(Promised),
    error=media(ErrorBody),
    errors=[NotFound],
)
async def _load(request: Request) -> Response:
    asked = await read_json(request, LoadWeights)
    if asked.model_id is not None and asked.seq_id is not None:

        async def load() -> Call:
            _refuse_token(asked)
            message = training_pb2.LoadStateRequest(path=asked.path, optimizer=asked.optimizer)
            return Call.of(Verb.LOAD_STATE, message)

        wanted = RequestId.of_model(asked.model_id, asked.seq_id)
        return answer(await promise(gateway_of(request), wanted, load, caller=caller_of(request)))
    if asked.session_id is None or asked.model_seq_id is None:
        raise InvalidInput("give model_id and seq_id, or session_id and model_seq_id", field="model_id")
    begun = await _begun(request, asked.session_id, asked.model_seq_id, lambda: _from_checkpoint(request, asked))
    return answer(begun)


@describe("Look at a Tinker model", takes=media(GetInfo), gives=media(Info), error=media(ErrorBody), errors=[NotFound])
async def _get_info(request: Request) -> Response:
    asked = await read_json(request, GetInfo)
    gateway = gateway_of(request)
    try:
        run = await gateway.control.runs.get(asked.model_id, caller=caller_of(request))
    except NotFound:
        raise NotFound(f"no model {asked.model_id!r}", field="model_id") from None
    row = await gateway.creations.row(run.run_id)
    return answer(
        Info(
            model_data=ModelData(model_name=run.base_model, tokenizer_id=run.base_model),
            model_id=run.run_id,
            lora_rank=run.lora.rank,
            model_name=run.base_model,
            optimizer_config=OptimizerConfig(type="adamw" if row is None else row.optimizer),
        )
    )


async def result_of(gateway: Gateway, wanted: RequestId, *, caller: Caller, wait_s: float) -> Result:
    """What has become of the creation of a model.

    Raises:
        NotFound: the caller has no such model.
    """
    if (failure := gateway.refusals.find(str(wanted))) is not None:
        await gateway.control.sessions.get(wanted.session_id, caller=caller)
        return Failed(failure)
    if not await gateway.control.runs.exists(wanted.owner, caller=caller):
        raise NotFound(f"no request {wanted}", field="request_id")
    task = gateway.creations.go_on(wanted.owner)
    released = asyncio.create_task(gateway.channels.released.wait())
    await asyncio.wait([task, released], timeout=wait_s, return_when="FIRST_COMPLETED")
    released.cancel()
    if not task.done():
        return Pending("paused_capacity", "the model is being made ready")
    outcome = task.result()
    if isinstance(outcome, Failure):
        return Failed(outcome)
    row = await gateway.creations.row(wanted.owner)
    if row is not None and row.load_path:
        return Done(LoadedWeights(path=CheckpointPath.parse(row.load_path).tinker_path, model_id=wanted.owner))
    return Done(CreatedModel(model_id=wanted.owner))


Wanted = Callable[[], Awaitable[tuple[control_pb2.ProvisionRunRequest, TinkerModelRow]]]


async def _begun(request: Request, session_id: str, model_seq_id: int, wanted: Wanted) -> Promised:
    """The promise of a model; a repetition begins nothing.

    Raises:
        NotFound: no such session.
    """
    gateway, caller = gateway_of(request), caller_of(request)
    model_id = model_id_of(session_id, model_seq_id)
    promised = Promised(request_id=f"{model_id}:0", model_id=model_id)
    await gateway.control.sessions.get(session_id, caller=caller)
    if not await gateway.control.runs.exists(model_id, caller=caller):
        try:
            await _enter(gateway, session_id, model_id, *await wanted(), caller=caller)
        except ApiError as error:
            if error.status >= 500:
                raise
            gateway.refusals.note(promised.request_id, failure_of(error.to_proto()))
            return promised
    gateway.creations.go_on(model_id)
    return promised


async def _enter(
    gateway: Gateway,
    session_id: str,
    model_id: str,
    message: control_pb2.ProvisionRunRequest,
    row: TinkerModelRow,
    *,
    caller: Caller,
) -> None:
    async def beside(db: AsyncSession) -> None:
        row.run_id = model_id
        db.add(row)

    try:
        await gateway.control.runs.create(
            session_id, message, caller=caller, once=Once(), run_id=model_id, beside=beside
        )
    except ApiError:
        if not await gateway.control.runs.exists(model_id, caller=caller):  # else the same came twice at once
            raise


async def _from_checkpoint(
    request: Request, asked: LoadWeights
) -> tuple[control_pb2.ProvisionRunRequest, TinkerModelRow]:
    """The model and the adapter of a checkpoint, which is to be loaded into it."""
    _refuse_token(asked)
    optimizers.check_optimizer(asked.optimizer_config)
    path, caller, control = CheckpointPath.parse(asked.path), caller_of(request), control_of(request)
    owns = not caller.is_operator and await control.runs.exists(path.run_id, caller=caller)
    found = await control.checkpoints.seen_by(caller, owns_unmarked=owns).get(path)
    served = control.fleet.served
    if asked.base_model and served.resolve(asked.base_model) != served.resolve(found.base_model):
        raise InvalidInput(
            f"the checkpoint is of {found.base_model!r}, not of {asked.base_model!r}", field="base_model"
        )
    message = control_pb2.ProvisionRunRequest(
        base_model=asked.base_model or await control.runs.model_name(path.run_id, found.base_model),
        lora=found.lora_adapter_config,
        with_sampler=True,
        user_metadata=metadata_of(asked.user_metadata),
    )
    return message, TinkerModelRow(load_path=str(path), load_optimizer=asked.optimizer)


def _refuse_token(asked: LoadWeights) -> None:
    if asked.weights_access_token is not None:
        raise InvalidInput(
            "this server gives no tokens for weights",
            field="weights_access_token",
            hint="a key sees the checkpoints of its project, an operator's all",
        )


ROUTES = [
    Route(f"{PREFIX}create_model", _create, methods=["POST"]),
    Route(f"{PREFIX}load_weights", _load, methods=["POST"]),
    Route(f"{PREFIX}get_info", _get_info, methods=["POST"]),
]
