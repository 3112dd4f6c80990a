"""Checkpoint paths as the Tinker SDK writes them. Both forms are read everywhere; only this one is told to it."""

from __future__ import annotations

from farstep_proto.names import CheckpointPath


def tinker_path(path: str) -> str:
    """`tinker://{run}/{kind}/{name}` of a path in either form."""
    return f"tinker://{CheckpointPath.parse(path).checkpoint_id}"
