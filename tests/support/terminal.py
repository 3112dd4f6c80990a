"""A command on a terminal of its own, as a person has it: what it shows, and how it ends."""

import os
import pty
import subprocess


def on_terminal(argv, *, answer="", environment=None, columns=120, timeout_s=60):
    """Exit code, and everything shown, standard error included; `answer` is typed ahead."""
    ours, its = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **(environment or {})}
    process = subprocess.Popen(argv, stdin=its, stdout=its, stderr=its, env=env, start_new_session=True)
    os.close(its)
    if answer:
        os.write(ours, answer.encode())
    shown = b""
    try:
        while piece := _read(ours):
            shown += piece
        return process.wait(timeout=timeout_s), shown.decode(errors="replace")
    finally:
        os.close(ours)
        process.kill()
        process.wait()


def _read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # everybody on the other side has gone
        return b""
