"""The gateway's routes: each module has a table of its own."""

from __future__ import annotations

from starlette.routing import Route

from farstep_infra.gateway import (
    auth,
    checkpoints_api,
    client_config,
    losses,
    models,
    promises,
    runs_api,
    sampling,
    saving,
    sessions,
    sessions_api,
    training,
    usage_api,
)

_TABLES = (
    client_config.ROUTES,
    auth.ROUTES,
    sessions.ROUTES,
    models.ROUTES,
    training.ROUTES,
    saving.ROUTES,
    sampling.ROUTES,
    losses.ROUTES,
    promises.ROUTES,
    runs_api.ROUTES,
    checkpoints_api.ROUTES,
    sessions_api.ROUTES,
    usage_api.ROUTES,
)


def gateway_routes() -> list[Route]:
    return [route for table in _TABLES for route in table]
