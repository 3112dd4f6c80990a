"""What the installation offers, and whether it lives, as the Tinker SDK asks for it."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control import overview
from farstep_infra.control.control import control_of
from farstep_infra.gateway.bodies import Body, answer, media
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_serving.descriptions import describe

HEALTHZ = f"{PREFIX}healthz"


class Health(Body):
    status: Literal["ok"] = "ok"


class SupportedModel(Body):
    """Each is trained and sampled: what a model lacks for that is started when it is first asked for."""

    model_name: str
    max_context_length: int | None = None
    trainable: bool = True
    sampleable: bool = True


class Capabilities(Body):
    supported_models: list[SupportedModel]


@describe("Tell a Tinker client that the server lives", gives=media(Health), error=media(ErrorBody))
async def _healthz(request: Request) -> Response:
    return answer(Health())


@describe("Tell which models there are", gives=media(Capabilities), error=media(ErrorBody))
async def _capabilities(request: Request) -> Response:
    found = overview.capabilities(control_of(request).fleet).supported_models
    models = [
        SupportedModel(model_name=each.model_name, max_context_length=each.max_context_length or None) for each in found
    ]
    return answer(Capabilities(supported_models=models))


ROUTES = [
    Route(HEALTHZ, _healthz, methods=["GET"]),
    Route(f"{PREFIX}get_server_capabilities", _capabilities, methods=["GET"]),
]
