"""The gateway's routes: each module has a table of its own."""

from __future__ import annotations

from starlette.routing import Route

from farstep_infra.gateway import (
    auth,
    capabilities,
    checkpoints_api,
    client_config,
    copies,
    losses,
    models,
    promises,
    runs_api,
    sampling,
    sampling_clients,
    saving,
    sessions,
    sessions_api,
    telemetry,
    traces,
    training,
    usage_api,
)

OPEN_TINKER_PATHS = frozenset({capabilities.HEALTHZ, traces.FILE})  # a trace's URL carries its own proof

_TABLES = (
    client_config.ROUTES,
    auth.ROUTES,
    sessions.ROUTES,
    models.ROUTES,
    training.ROUTES,
    saving.ROUTES,
    sampling.ROUTES,
    sampling_clients.ROUTES,
    losses.ROUTES,
    promises.ROUTES,
    runs_api.ROUTES,
    checkpoints_api.ROUTES,
    copies.ROUTES,
    capabilities.ROUTES,
    traces.ROUTES,
    telemetry.ROUTES,
    sessions_api.ROUTES,
    usage_api.ROUTES,
)


def gateway_routes() -> list[Route]:
    return [route for table in _TABLES for route in table]
