"""What the suite sees happen, as it happens: lines of diaries and changes of files. Faults are aimed by it.

One thread reads the kernel's notices of a directory tree (inotify, Linux); others push lines. `Waiting` picks out what
a fault waits for. Nothing here looks twice a second whether something has come.
"""

from __future__ import annotations

import ctypes
import os
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CREATE, _MODIFY, _MOVED_TO, _DELETE, _IS_DIRECTORY = 0x100, 0x2, 0x80, 0x200, 0x40000000
_WATCHED = _CREATE | _MODIFY | _MOVED_TO | _DELETE
_HEADER = struct.Struct("iIII")


@dataclass(frozen=True, slots=True)
class Seen:
    """`source` is "file" or a client's name; `what` the kind of line or the path below the watched directory."""

    source: str
    what: str
    facts: dict[str, Any] = field(default_factory=dict)


Wanted = Callable[[Seen], bool]


class Events:
    """Told by any thread, to all who wait at that moment."""

    def __init__(self) -> None:
        self._waiting: list[queue.SimpleQueue[Seen]] = []
        self._lock = threading.Lock()

    def tell(self, seen: Seen) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for each in waiting:
            each.put(seen)

    @contextmanager
    def waiting(self) -> Iterator[Waiting]:
        """Misses nothing from the beginning of the block on."""
        inbox: queue.SimpleQueue[Seen] = queue.SimpleQueue()
        with self._lock:
            self._waiting.append(inbox)
        try:
            yield Waiting(inbox)
        finally:
            with self._lock:
                self._waiting.remove(inbox)


class Waiting:
    def __init__(self, inbox: queue.SimpleQueue[Seen]) -> None:
        self._inbox = inbox

    def until(
        self, wanted: Wanted, *, times: int = 1, timeout_s: float, unless: Callable[[], bool] = lambda: False
    ) -> bool:
        """Whether it was seen so often in time; `unless`, asked at everything that is seen, says that it cannot be."""
        deadline = time.monotonic() + timeout_s
        while times:
            try:
                seen = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return False
            if unless():
                return False
            times -= wanted(seen)
        return True


class Tree:
    """Tells of every file below a directory that is made, written, renamed or removed."""

    def __init__(self, root: Path, events: Events) -> None:
        self._root = root
        self._events = events
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._paths: dict[int, Path] = {}
        self._watch(root)
        threading.Thread(target=self._read, name="tree", daemon=True).start()

    def _watch(self, directory: Path) -> None:
        number = self._libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _WATCHED)
        if number < 0:
            return  # gone again
        self._paths[number] = directory
        try:
            for entry in list(os.scandir(directory)):
                if entry.is_dir(follow_symlinks=False):
                    self._watch(directory / entry.name)
        except FileNotFoundError:
            return

    def _read(self) -> None:
        while True:
            notices = os.read(self._descriptor, 1 << 16)
            while notices:
                number, mask, _, length = _HEADER.unpack_from(notices)
                name = notices[_HEADER.size : _HEADER.size + length].rstrip(b"\0").decode(errors="replace")
                notices = notices[_HEADER.size + length :]
                if number not in self._paths:
                    continue
                path = self._paths[number] / name
                self._events.tell(Seen("file", str(path.relative_to(self._root))))
                if mask & _IS_DIRECTORY and mask & (_CREATE | _MOVED_TO):
                    self._watch(path)
