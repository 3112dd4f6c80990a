"""Custom losses over the Tinker wire: sent in once, and named by their ids in the passes that follow.

An id is the loss itself (`custom_loss`), so that its promise, whose request id ends with it, is kept by the client.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control.control import control_of
from farstep_infra.gateway.bodies import Body, answer, media, read_json
from farstep_infra.gateway.custom_loss import loss_id_of
from farstep_infra.gateway.failures import PREFIX, ErrorBody, failure_of
from farstep_infra.gateway.gateway import Gateway, gateway_of
from farstep_infra.gateway.refusals import Refusals
from farstep_infra.gateway.request_ids import MAX_NUMBER, RequestId
from farstep_infra.gateway.results import Done, Failed, Promised, Result
from farstep_proto.errors import InvalidInput, NotFound
from farstep_serving.descriptions import describe
from farstep_serving.keys import Caller, caller_of


class CreateCustomLoss(Body):
    model_config = ConfigDict(extra="allow")

    session_id: str
    custom_loss_seq_id: Annotated[int, Field(ge=0, le=MAX_NUMBER)]


class CreatedLoss(Body):
    loss_id: str
    type: Literal["create_custom_loss"] = "create_custom_loss"


@describe(
    "Send in a custom loss",
    takes=media(CreateCustomLoss),
    gives=media(Promised),
    error=media(ErrorBody),
    errors=[NotFound],
)
async def _create(request: Request) -> Response:
    asked = await read_json(request, CreateCustomLoss)
    control = control_of(request)
    await control.sessions.get(asked.session_id, caller=caller_of(request))
    body: dict[str, Any] = asked.model_extra or {}
    entered = _entered(gateway_of(request).refusals, asked, body, is_taken=control.custom_losses)
    return answer(Promised(request_id=str(entered)))


def _entered(refusals: Refusals, asked: CreateCustomLoss, body: dict[str, Any], *, is_taken: bool) -> RequestId:
    owner = f"{asked.session_id}:loss"
    try:
        if not is_taken:
            raise InvalidInput(
                "this server computes no losses that clients send in",
                field="graph",
                hint="run it on the client, or start the server with --custom-losses",
            )
        return RequestId("loss", owner, asked.custom_loss_seq_id, text=loss_id_of(body))
    except InvalidInput as error:
        refused = RequestId("loss", owner, asked.custom_loss_seq_id)
        refusals.note(str(refused), failure_of(error.to_proto()))
        return refused


async def result_of(gateway: Gateway, wanted: RequestId, *, caller: Caller) -> Result:
    """What has become of a loss that was sent in."""
    await gateway.control.sessions.get(wanted.session_id, caller=caller)
    if wanted.text:
        return Done(CreatedLoss(loss_id=wanted.text))
    return Failed(gateway.refusals.told(str(wanted)))


ROUTES = [Route(f"{PREFIX}create_custom_loss", _create, methods=["POST"])]
