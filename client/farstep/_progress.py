"""The status line of a long wait: what runs, where it stands in the queue, how fast the run goes, what is amiss.

Shown in a terminal or a notebook after a second, one line at a time; never elsewhere, never in CI, and not
where FARSTEP_PROGRESS is 0. It decides nothing: without it every wait ends the same way.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from farstep import _loop
from farstep._pending import Pending
from farstep_proto.v1 import operations_pb2 as pb

QUIET_S = 1.0
TICK_S = 0.5
LOOK_EVERY_S = 2.0

_line_is_taken = threading.Lock()


def wait(
    pending: Pending,
    timeout_s: float | None,
    *,
    look: Callable[[], Coroutine[Any, Any, str]],
    label: Callable[[], str],
    trouble: Callable[[], str] = lambda: "",
) -> bool:
    """As `pending.wait`, with a status line where one may be shown.

    Args:
        look: asks the server where the operation stands.
        label: what is waited for.
        trouble: what does not answer, if anything.
    """
    quiet_s = QUIET_S if timeout_s is None else min(QUIET_S, timeout_s)
    if not is_shown():
        return pending.wait(timeout_s)
    if pending.wait(quiet_s):
        return True
    rest_s = None if timeout_s is None else timeout_s - quiet_s
    with line(label()) as update:
        if update is None:
            return pending.wait(rest_s)
        return _wait_with_line(pending, rest_s, look, label, trouble, update)


@contextmanager
def line(text: str) -> Iterator[Callable[[str], None] | None]:
    """The one status line: gives what changes its text, or None where somebody else has it."""
    if not _line_is_taken.acquire(blocking=False):
        yield None
        return
    try:
        from rich.console import Console

        with Console(stderr=True).status(text) as status:
            yield status.update
    finally:
        _line_is_taken.release()


def claim_line() -> bool:
    """Takes the one status line for longer, until `release_line`; False where somebody has it."""
    return _line_is_taken.acquire(blocking=False)


def release_line() -> None:
    _line_is_taken.release()


def say(text: str) -> None:
    """A line that stays."""
    from rich.console import Console

    Console(stderr=True).print(text)


def _wait_with_line(
    pending: Pending,
    timeout_s: float | None,
    look: Callable[[], Coroutine[Any, Any, str]],
    label: Callable[[], str],
    trouble: Callable[[], str],
    update: Callable[[str], None],
) -> bool:
    began_at = time.monotonic()
    looked_at, looking, state = -LOOK_EVERY_S, None, ""
    while True:
        waited_s = time.monotonic() - began_at
        left_s = TICK_S if timeout_s is None else min(TICK_S, timeout_s - waited_s)
        if pending.wait(max(left_s, 0)):
            return True
        if timeout_s is not None and waited_s >= timeout_s:
            return False
        state = _answer(looking) or state
        if waited_s - looked_at >= LOOK_EVERY_S and (looking is None or looking.done()):
            looked_at, looking = waited_s, _loop.start(look())
        parts = (label(), trouble() or state, f"{QUIET_S + waited_s:.0f} s")
        update(" · ".join(part for part in parts if part))


def _answer(looking: Future[str] | None) -> str:
    if looking is None or not looking.done() or looking.exception() is not None:
        return ""
    return looking.result()


def describe_state(operation: pb.Operation) -> str:
    match operation.state:
        case pb.OPERATION_STATE_QUEUED:
            return f"queued behind {operation.queue_place}" if operation.queue_place else "queued"
        case pb.OPERATION_STATE_RUNNING:
            return "running"
        case _:
            return ""


@contextmanager
def status(label: str) -> Iterator[None]:
    """A line that says what is waited for, for the length of the block, where one may be shown."""
    if not is_shown() or not _line_is_taken.acquire(blocking=False):
        yield
        return
    from rich.console import Console
    from rich.markup import escape

    try:
        with Console(stderr=True).status(escape(label)):
            yield
    finally:
        _line_is_taken.release()


@functools.cache
def is_shown() -> bool:
    if os.environ.get("FARSTEP_PROGRESS") == "0" or os.environ.get("CI"):
        return False
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return type(running).__name__ == "ZMQInteractiveShell"
