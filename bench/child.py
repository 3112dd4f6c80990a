"""A child process of the benchmark: it says in one JSON line when it is ready, and may then be asked, line by line.

Each child ends with its `with` block, and, since its standard input closes then, with this process too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Child:
    """`facts` is what the process announced. Its log goes to `log`, whose name a failure tells.

    Args:
        python: of another environment, if not of this one.
    """

    def __init__(
        self, module: str, *arguments: str | Path, num_threads: int, log: Path, python: str | Path = sys.executable
    ) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "PASSIVE"}
        env.pop("FARSTEP_API_KEY", None)
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [str(python), "-m", module, *map(str, arguments)],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.facts = self._read()

    @property
    def resident_bytes(self) -> int:
        return resident_bytes(self._process.pid)

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise SystemExit(f"a process of the benchmark ended:\n{self._log.read_text()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def resident_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def answer(**facts: Any) -> None:
    """The child's side of `ask`, and its announcement."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
