"""Submissions that were refused before any server took them, by their request ids: futures that failed at once.

That alone a gateway keeps in memory; it is bounded, and what falls out is told as a refusal without its reason.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from farstep_infra.gateway.failures import Failure

_MAX_KEPT = 10_000


class Refusals:
    """Args: `on_note` hears of the request id of each."""

    def __init__(self, *, on_note: Callable[[str], None] = lambda request_id: None, max_kept: int = _MAX_KEPT) -> None:
        self._on_note = on_note
        self._max_kept = max_kept
        self._kept: OrderedDict[str, Failure] = OrderedDict()

    def note(self, request_id: str, failure: Failure) -> None:
        self._kept[request_id] = failure
        self._kept.move_to_end(request_id)
        while len(self._kept) > self._max_kept:
            self._kept.popitem(last=False)
        self._on_note(request_id)

    def told(self, request_id: str) -> Failure:
        """What is said of a submission that was refused, also where its reason has been forgotten."""
        text = "this submission was refused, and the server has forgotten why: submit it again to be told"
        return self._kept.get(request_id) or Failure(error=text, category="user")

    def find(self, request_id: str) -> Failure | None:
        return self._kept.get(request_id)
