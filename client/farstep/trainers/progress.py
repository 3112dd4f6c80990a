"""How far a run is and how long it takes still: a bar in a terminal or notebook, nothing elsewhere.

The estimate is by the median time of the last steps, so that one slow step does not move it.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from farstep import _progress

if TYPE_CHECKING:
    from rich.progress import Progress

_REMEMBERED = 32
_SPEED_OVER = 8  # steps are submitted ahead and their results may come at once: one step's time alone says nothing


_SHOWN_CHARACTERS = 200


def sample_line(sample: Mapping[str, Any]) -> str:
    """A sample on a line of its own: the end of its prompt, the beginning of its completion, its reward."""
    prompt, completion = (_one_line(sample.get(name)) for name in ("prompt", "completion"))
    if len(prompt) > _SHOWN_CHARACTERS:
        prompt = "…" + prompt[1 - _SHOWN_CHARACTERS :]
    if len(completion) > _SHOWN_CHARACTERS:
        completion = completion[: _SHOWN_CHARACTERS - 1] + "…"
    reward = sample.get("reward")
    return f"  {prompt} → {completion}" + (f"  [{reward:.4g}]" if isinstance(reward, int | float) else "")


def _one_line(text: object) -> str:
    return " ⏎ ".join(str(text if text is not None else "").strip().splitlines())


class Pace:
    """Seconds a step, and from that when the last one is made."""

    def __init__(self, total_steps: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_steps = total_steps
        self._clock = clock
        self._took: deque[float] = deque(maxlen=_REMEMBERED)
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=_SPEED_OVER)
        self._last_at = clock()

    def step(self, num_steps: int = 1) -> float:
        """Seconds since the last call, for so many steps."""
        now = self._clock()
        took, self._last_at = now - self._last_at, now
        self._took.extend([took / max(1, num_steps)] * min(num_steps, _REMEMBERED))
        return took

    def speed(self, took_s: float, num_tokens: float, num_rows: float) -> tuple[float, float]:
        """Tokens and rows a second over the last steps, with this one."""
        self._recent.append((took_s, num_tokens, num_rows))
        times, tokens, rows = (sum(column) for column in zip(*self._recent, strict=True))
        return tokens / times, rows / times

    def pause(self) -> None:
        """What was done since the last step was none: an evaluation, a checkpoint."""
        self._last_at = self._clock()

    def eta_s(self, step: int) -> float:
        if not self._took:
            return 0.0
        return max(0, self.total_steps - step) * statistics.median(self._took)


class ProgressBar:
    """Shown where the SDK shows its waits, and in their place. Closing it leaves the last line."""

    def __init__(self, name: str, total_steps: int) -> None:
        self._bar: Progress | None = None
        if not _progress.is_shown() or not _progress.claim_line():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        from rich.markup import escape

        self._task: Any = self._bar.add_task(escape(name), total=total_steps or None, told="", speed="")
        self._bar.start()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._bar is None:
            return
        loss, reward, speed = (metrics.get(name) for name in ("loss", "rollout/reward_mean", "tokens_per_s"))
        self._bar.update(
            self._task,
            completed=step,
            told=f"reward {reward:.3f}" if reward is not None else f"loss {loss:.4f}" if loss is not None else "",
            speed="" if speed is None else f"{speed:,.0f} tokens/s",
        )

    def say(self, text: str) -> None:
        """A line above the bar; nothing where there is none."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            _progress.release_line()
