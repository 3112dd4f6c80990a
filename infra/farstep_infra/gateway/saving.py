"""Saving over the Tinker wire: training states, weights for samplers, and weights to download."""

from __future__ import annotations

from starlette.routing import Route

ROUTES: list[Route] = []
