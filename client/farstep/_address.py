"""A server's address, and who can say where it is when it is not there any more."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Origin:
    """A control plane, a session of ours there, and what the server is to it.

    Of a server that belongs to a run, `run_id` says to which and `is_sampler` which of its two it is; of a fresh
    sampler, `sampler_id`. Both are empty for the session alone.
    """

    control_url: str
    session_id: str
    run_id: str = ""
    is_sampler: bool = False
    sampler_id: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is now; without an origin it is there or nowhere."""

    url: str
    origin: Origin | None = field(default=None)

    @property
    def identity(self) -> Origin | str:
        """What stays the same when the server moves."""
        return self.origin or self.url
