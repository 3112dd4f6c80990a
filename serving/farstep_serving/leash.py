"""A program that dies with its parent: the kernel kills it as soon as the thread that started it is gone.

A pipe as standard input tells a child the same, but only one that still reads: not one that is stopped or hangs, or is
still busy importing. Where there is no such call of the kernel, outside Linux, the pipe is all there is.

Run as a script it puts the leash on and becomes the program. It knows nothing of what it starts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def leashed(argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` on a leash held by the calling thread, which must live as long as this process.

    Not by a function between fork and exec (`preexec_fn`), which may deadlock where other threads are.
    """
    if not sys.platform.startswith("linux"):
        return list(argv)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv]


def _main() -> None:
    import ctypes

    parent_pid, argv = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the leash was on
        sys.exit("the process that started this one is gone")
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - that there is no shell is the point
    except OSError as error:
        sys.exit(f"cannot start {argv[0]}: {error.strerror}")


if __name__ == "__main__":
    _main()
