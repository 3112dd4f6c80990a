"""The other processes of a data-parallel trainer: started by rank 0, watched, and gone when it is.

Each has a pipe of ours as standard input and ends when that closes, and is on a leash, so that none outlives this
process, however it dies. One that dies is reported once, and never restarted: a replica cannot be made while its runs
train.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from farstep_serving.leash import leashed

log = logging.getLogger(__name__)

STOP_GRACE_S = 5.0
_EPITAPH_S = 2.0


class Followers:
    """Processes of ranks 1, 2, …; `on_death` is called on a thread of its own, with how one of them ended."""

    def __init__(self, *, on_death: Callable[[str], None]) -> None:
        self.on_death = on_death
        self._children: list[subprocess.Popen[bytes]] = []
        self._epitaph = ""
        self._has_died = threading.Event()
        self._closing = False
        self._lock = threading.Lock()

    def start(self, commands: Sequence[Sequence[str]], *, env: Mapping[str, str]) -> None:
        """Starts one command a rank; what they print goes to our standard error."""
        for rank, command in enumerate(commands, start=1):
            # A session of its own: Ctrl-C in the terminal reaches us alone.
            child = subprocess.Popen(
                leashed(command),
                stdin=subprocess.PIPE,
                stdout=sys.stderr.fileno(),
                env=dict(env),
                start_new_session=True,
            )
            self._children.append(child)
            threading.Thread(target=self._watch, args=(rank, child), name=f"watch-rank-{rank}", daemon=True).start()

    def epitaph(self, reason: str) -> str:
        """How the first that died ended, if one of them is dying now; else the reason given."""
        return self._epitaph if self._has_died.wait(_EPITAPH_S) else reason

    def close(self) -> None:
        """Ends all, in a few seconds at most; again does nothing."""
        with self._lock:
            self._closing = True
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
        deadline = time.monotonic() + STOP_GRACE_S
        for child in self._children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _watch(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        code = child.wait()
        with self._lock:
            if self._closing or self._has_died.is_set():
                return
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            self._epitaph = f"rank {rank} (process {child.pid}) ended {how}"
            self._has_died.set()
        self.on_death(self._epitaph)
