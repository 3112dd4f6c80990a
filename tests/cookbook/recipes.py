"""Recipes of `tinker-cookbook`, run unchanged as the processes that they are, in an environment of their own."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.tinker_processes import ENDS

PYTHON = os.environ.get("FARSTEP_COOKBOOK_PYTHON", "")
CHAT, BASE = "Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base"
SERVED_NAMES = (CHAT, BASE)
_WITHIN_S = 900


@dataclass(frozen=True)
class Recipes:
    """Runs recipes in a folder that has tokenizers and data under the names that recipes ask for."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, recipe: str, log_path: str, **options: Any) -> list[dict[str, Any]]:
        """To its end; its metrics, step by step."""
        done = subprocess.run(
            self._command(recipe, log_path, options),
            cwd=self.folder,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=_WITHIN_S,
            check=False,
        )
        is_done = done.returncode == 0 or (done.returncode in ENDS and self._is_saved(log_path))
        assert is_done, f"{recipe} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return self.metrics(log_path)

    def run_until(self, recipe: str, log_path: str, killed_when: Callable[[], bool], **options: Any) -> None:
        """Until something is so; then it is killed, as abruptly as it gets."""
        log = (self.folder / f"{log_path}.log").open("wb")
        with (
            log,
            subprocess.Popen(
                self._command(recipe, log_path, options),
                cwd=self.folder,
                env=dict(self.environment),
                stdout=log,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            deadline = time.monotonic() + _WITHIN_S
            while not killed_when():
                assert process.poll() is None, f"{recipe} ended by itself:\n{Path(log.name).read_text()[-6000:]}"
                assert time.monotonic() < deadline, f"{recipe} takes too long"
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)

    def metrics(self, log_path: str) -> list[dict[str, Any]]:
        return _lines(self.folder / log_path / "metrics.jsonl")

    def checkpoints(self, log_path: str) -> list[dict[str, Any]]:
        return _lines(self.folder / log_path / "checkpoints.jsonl")

    def _is_saved(self, log_path: str) -> bool:
        return any(checkpoint.get("name") == "final" for checkpoint in self.checkpoints(log_path))

    def _command(self, recipe: str, log_path: str, options: Mapping[str, Any]) -> list[str]:
        settings = [f"{name.replace('__', '.')}={value}" for name, value in options.items()]
        return [PYTHON, "-m", f"tinker_cookbook.recipes.{recipe}", f"log_path={log_path}", *settings]


def _lines(file: Path) -> list[dict[str, Any]]:
    """Those that have been written whole."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
