"""Usage, as the Tinker SDK's AdminClient asks for it."""

from __future__ import annotations

from starlette.routing import Route

ROUTES: list[Route] = []
