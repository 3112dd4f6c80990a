"""Checkpoints, as the Tinker SDK's RestClient and command ask for them."""

from __future__ import annotations

from starlette.routing import Route

ROUTES: list[Route] = []
