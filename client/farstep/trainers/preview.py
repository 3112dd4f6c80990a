"""`LaunchPreview`: what a run is about to do, said before its first step. It reads what is known and starts nothing.

Time is estimated from what earlier runs of the same trainer and model here (a dry run among them) have measured;
where there is none, nothing is claimed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farstep.trainers.config.trainer import DRY_RUN_SUFFIX
from farstep.trainers.events import Event, read_events
from farstep.trainers.run_folder import EVENTS
from farstep.trainers.schedules import Schedule

if TYPE_CHECKING:
    from farstep.trainers.config import TrainerConfig
    from farstep.trainers.trainer import Trainer

_SHOWN_RATES = 5


@dataclass(frozen=True, slots=True)
class LaunchPreview:
    """
    Args:
        data: counts of the rows, as `DataReport` has them; empty where rows were tokens already.
        group_size: answers to each prompt; 0 where nothing is sampled.
        learning_rates: (step, rate) at the steps where the schedule turns.
        estimate_s: of all steps that are left; None where nothing was measured.
        measured: what the estimate is made of.
    """

    trainer: str
    name: str
    base_model: str
    folder: str
    first_step: int
    total_steps: int
    epochs: int
    batch_size: int
    num_examples: int
    data: Mapping[str, Any]
    learning_rates: tuple[tuple[int, float], ...]
    num_eval_examples: int
    eval_interval: int
    group_size: int = 0
    is_dry_run: bool = False
    estimate_s: float | None = None
    measured: str = ""

    @classmethod
    def of(cls, trainer: Trainer) -> LaunchPreview:
        """Of a trainer after `init`."""
        config, held_out = trainer.config, trainer.eval_rows
        estimate_s, measured = estimate(trainer)
        return cls(
            trainer=trainer.name,
            name=config.name,
            base_model=config.model.base,
            folder=str(trainer.folder.path),
            first_step=trainer.global_step,
            total_steps=trainer.training_horizon,
            epochs=trainer.horizon.epochs,
            batch_size=config.batch_size,
            num_examples=len(trainer.train_rows),
            data=trainer.train_rows.report,
            learning_rates=rates(getattr(trainer, "schedule", None), config.optimizer.lr, trainer.training_horizon),
            num_eval_examples=len(held_out) if held_out is not None else 0,
            eval_interval=config.eval_interval,
            group_size=config.rl.group_size if trainer.requires_rollout else 0,
            is_dry_run=config.dry_run,
            estimate_s=estimate_s,
            measured=measured,
        )

    def lines(self) -> dict[str, str]:
        """For people, by what they are about."""
        steps = f"{self.total_steps:,} in {self.epochs:,} epoch{'s' * (self.epochs != 1)}, batches of {self.batch_size}"
        if self.first_step:
            steps += f"; goes on after {self.first_step:,}"
        told = {
            "run": f"{self.name}: {self.trainer} on {self.base_model}",
            "folder": self.folder,
            "data": data_line(self.data, self.num_examples),
            "steps": steps,
        }
        if self.learning_rates:
            rates = [f"{rate:.3g} at step {step:,}" for step, rate in self.learning_rates]
            is_constant = len(rates) == 1 and self.total_steps > 1
            told["learning rate"] = f"{self.learning_rates[0][1]:.3g}, constant" if is_constant else ", ".join(rates)
        if self.group_size:
            told["rollouts"] = f"{self.group_size} answers to each of {self.batch_size} prompts a batch"
        if self.eval_interval and self.num_eval_examples:
            told["evaluation"] = f"every {self.eval_interval:,} steps on {self.num_eval_examples:,} examples"
        if self.estimate_s is not None:
            told["time"] = f"about {_duration(self.estimate_s)} ({self.measured})"
        elif not self.is_dry_run:
            told["time"] = "not measured yet; a dry run measures it"
        return told


def data_line(report: Mapping[str, Any], num_examples: int) -> str:
    """Examples, tokens, and what was left out and why."""
    if not report.get("rows"):
        return f"{num_examples:,} examples"
    told = f"{num_examples:,} examples of {report['rows']:,} rows"
    if report.get("tokens"):
        told += f", {report['tokens']:,} tokens"
    if report.get("targets"):
        told += f", {report['targets']:,} of them trained"
    skipped = {name: number for name, number in report.items() if name.startswith(("dropped", "skipped")) and number}
    cut = {"truncated": report["truncated"]} if report.get("truncated") else {}
    shown = [f"{name.replace('_', ' ')} {number:,}" for name, number in (skipped | cut).items()]
    return f"{told}; {', '.join(shown) or 'none skipped'}"


def rates(schedule: Schedule | None, lr: float, total_steps: int) -> tuple[tuple[int, float], ...]:
    """The learning rate of the first step (1), of the last one, and where it turns in between."""
    if schedule is None or total_steps < 1:
        return ()
    turns = {1, schedule.warmup_steps + 1, total_steps // 2, total_steps}
    steps = sorted(step for step in turns if 1 <= step <= total_steps)[:_SHOWN_RATES]
    found = [(step, lr * schedule(step - 1)) for step in steps]
    return tuple(found[:1]) if len({rate for _, rate in found}) == 1 else tuple(found)


def estimate(trainer: Trainer) -> tuple[float | None, str]:
    """Seconds for the steps that are left, and where that is from."""
    config = trainer.config
    left = trainer.training_horizon - trainer.global_step
    tokens = trainer.train_rows.report.get("tokens") or 0
    for events, where in _earlier(trainer.folder.path, config):
        logs = [event for event in events if event["type"] == "log"][1:]  # the first step loads and compiles things
        speeds = [event["tokens_per_s"] for event in logs if event.get("tokens_per_s")]
        times = [event["time/step_s"] for event in logs if event.get("time/step_s")]
        if tokens and speeds:
            per_step = tokens / max(1, len(trainer.train_rows)) * min(config.batch_size, len(trainer.train_rows))
            speed = statistics.median(speeds)
            return left * per_step / speed, f"{speed:,.0f} tokens/s in {where}"
        if times:
            return left * statistics.median(times), f"{statistics.median(times):.2f} s a step in {where}"
    return None, ""


def _earlier(folder: Path, config: TrainerConfig) -> Iterator[tuple[list[Event], str]]:
    """Of runs before this one, the newest first, that trained the same model in the same way."""
    beside = folder.with_name(folder.name.removesuffix(DRY_RUN_SUFFIX) + DRY_RUN_SUFFIX)
    kept = [folder / EVENTS, *folder.glob(f"earlier/*/{EVENTS}"), beside / EVENTS]
    files = sorted({file for file in kept if file.is_file()}, key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        events = read_events(file)
        started = next((event for event in events if event["type"] == "started"), None)
        if started is None or (started.get("trainer"), started.get("base_model")) != (config.type, config.model.base):
            continue
        yield events, "the dry run" if started.get("dry_run") else "the run before"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
