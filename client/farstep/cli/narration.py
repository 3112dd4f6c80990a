"""What `farstep train` says of a run to people: what it is about to do, how it goes where no bar is shown, its end.

On standard error, but for the last line, which says what came of it. An event sink; decides nothing.
"""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from farstep import _progress
from farstep.cli.output import duration, print_lines, visible

if TYPE_CHECKING:
    from farstep.trainers.preview import LaunchPreview

_SAY_EVERY_S = 2.0
_NO_END = 2**31  # columns of what is no terminal
_ENDS = ("completed", "failed", "cancelled")


class Narrator:
    """Args: `in_json`: events are printed elsewhere, and only what goes wrong is said here."""

    def __init__(self, *, in_json: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_silent = in_json
        self._clock = clock
        self._said_at = -_SAY_EVERY_S
        self._checkpoint = ""

    def preview(self, preview: LaunchPreview) -> None:
        if self._is_silent:
            return
        lines = preview.lines()
        width = max(map(len, lines))
        columns = shutil.get_terminal_size().columns - 1 if sys.stderr.isatty() else _NO_END
        for name, text in lines.items():
            for line in textwrap.wrap(
                f"{name:{width}}  {text}",
                columns,
                subsequent_indent=" " * (width + 2),
                break_long_words=False,
                break_on_hyphens=False,
            ):
                self._say(line)

    def begin(self, file: object) -> None:
        """To whoever waits at a terminal: until there is a bar, some seconds go into packages and data."""
        if not self._is_silent and _progress.is_shown():
            self._say(f"reading {file} and its data …")

    def __call__(self, event: Mapping[str, Any]) -> None:
        match event["type"]:
            case "log":
                self._log(event)
            case "eval":
                shown = [f"{name} {_number(value)}" for name, value in event.items() if name.startswith("eval/")]
                self._say(f"evaluation at step {event['step']}: {', '.join(shown)}")
                if not _progress.is_shown():
                    self._samples(event)
            case "checkpoint":
                self._checkpoint = str(event["path"])
            case "rollout" if not _progress.is_shown() and self._is_time():
                self._samples(event)

    def end(self, trainer: Any) -> None:
        """What came of it, on standard output; nothing where it did not begin."""
        if self._is_silent or str(trainer.state) not in _ENDS:
            return
        result = trainer.result
        told = f"{trainer.state} after {result.steps} step{'s' * (result.steps != 1)}"
        if math.isfinite(result.loss):
            told += f", loss {_number(result.loss)}"
        if (reward := result.extra.get("rollout/reward_mean")) is not None:
            told += f", reward {_number(reward)}"
        if result.accuracy is not None:
            told += f", accuracy {_number(result.accuracy)}"
        if result.stopped_because:
            told += f"; {result.stopped_because}"
        lines = [told]
        if self._checkpoint:
            lines.append(f"checkpoint {self._checkpoint}")
        folder = getattr(trainer, "folder", None)
        report = folder.path / "report.html" if folder is not None else None
        if report is not None and report.is_file():
            lines.append(f"report {report}")
        print_lines([visible(line) for line in lines])

    def _log(self, event: Mapping[str, Any]) -> None:
        is_last = event["step"] == event.get("total_steps")
        if _progress.is_shown() or not (self._is_time() or is_last):
            return
        self._said_at = self._clock()
        told = [f"step {event['step']}/{event.get('total_steps')}", f"loss {_number(event.get('loss'))}"]
        if (reward := event.get("rollout/reward_mean")) is not None:
            told.append(f"reward {_number(reward)}")
        told.append(f"rate {_number(event.get('learning_rate'))}")
        if speed := event.get("tokens_per_s"):
            told.append(f"{speed:,.0f} tokens/s")
        if event.get("eta_s"):
            told.append(f"{duration(event['eta_s'])} left")
        self._say("  ".join(told))

    def _samples(self, event: Mapping[str, Any]) -> None:
        for each in (event.get("samples") or ())[:1]:
            from farstep.trainers.progress import sample_line

            self._say(sample_line(each))

    def _is_time(self) -> bool:
        return self._clock() - self._said_at >= _SAY_EVERY_S

    @staticmethod
    def _say(text: str) -> None:
        if text.strip():
            sys.stderr.write(visible(text) + "\n")
            sys.stderr.flush()


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"
