"""What the demo shows: a live table while it runs, a summary in numbers, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from farstep_demo.loop import Row

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN_ROWS = 12


@dataclass(frozen=True, slots=True)
class Summary:
    """The run in numbers; `--json` writes it.

    Loss in nats a token, measured around the supervised steps; rewards between 0 and 1, measured around both phases.
    """

    reward_before: float
    reward_after: float
    heldout_loss_before: float
    heldout_loss_after: float
    policy_versions: list[int]
    wall_s: float
    train_tokens_per_s: float
    sample_tokens_per_s: float
    checkpoint: str
    checkpoint_dir: str
    base_model: str

    def to_json(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {**asdict(self), "steps": [asdict(row) for row in rows]}


class LiveTable:
    """The last steps as a table that redraws itself; where there is no terminal, a line a step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: list[Row] = []
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None

    def __enter__(self) -> LiveTable:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live:
            self._live.stop()
            self._console.print(self._draw())

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if self._live:
            self._live.update(self._draw())
        else:
            self._console.print(
                "  ".join(f"{key} {value}" for key, value in _cells(row).items() if value), soft_wrap=True
            )

    def _draw(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in _cells(self._rows[-1]) if self._rows else ():
            table.add_column(name, justify="right")
        for row in self._rows[-_SHOWN_ROWS:]:
            table.add_row(*_cells(row).values())
        return Group(table, *curves(self._rows))


def curves(rows: Sequence[Row]) -> list[Text]:
    """One line of bars for the supervised loss and one for the reward."""
    losses = [row.loss for row in rows if row.phase == "sft"]
    rewards = [row.reward for row in rows if row.reward is not None]
    lines = []
    if losses:
        lines.append(_curve("loss  ", losses, lowest=min(losses), highest=max(losses), colour="cyan"))
    if rewards:
        lines.append(_curve("reward", rewards, lowest=0.0, highest=1.0, colour="green"))
    return lines


def _curve(name: str, values: Sequence[float], *, lowest: float, highest: float, colour: str) -> Text:
    span = (highest - lowest) or 1.0
    bars = "".join(_BARS[min(int((value - lowest) / span * len(_BARS)), len(_BARS) - 1)] for value in values)
    return Text.assemble(f"{name} {values[0]:5.2f} ", (bars, colour), f" {values[-1]:.2f}")


def _cells(row: Row) -> dict[str, str]:
    return {
        "phase": row.phase,
        "step": str(row.step),
        "loss": f"{row.loss:+.3f}",
        "reward": "" if row.reward is None else f"{row.reward:.3f}",
        "policy": "" if row.policy_version is None else f"v{row.policy_version}",
        "train tok/s": f"{row.train_tokens / row.train_s:,.0f}",
        "sample tok/s": f"{row.sample_tokens / row.sample_s:,.0f}" if row.sample_s else "",
    }


def print_summary(console: Console, summary: Summary, *, plot: Path | None) -> None:
    versions = summary.policy_versions
    lines = {
        "held-out loss": f"{summary.heldout_loss_before:.3f} → {summary.heldout_loss_after:.3f} nats a token, "
        "after the supervised steps, on library documentation that the base model has not seen",
        "held-out reward": f"{summary.reward_before:.3f} → {summary.reward_after:.3f} "
        "at temperature 1, on additions that were never trained on",
        "policies served": f"{len(versions)}: v{versions[0]} … v{versions[-1]}, each by the gate",
        "speed": f"{summary.train_tokens_per_s:,.0f} trained tokens/s, "
        f"{summary.sample_tokens_per_s:,.0f} sampled tokens/s (publishing included)",
        "time": f"{summary.wall_s:.0f} s, starting the three processes included",
        "checkpoint": f"{summary.checkpoint} in {summary.checkpoint_dir}",
    }
    if plot is not None:
        lines["plot"] = str(plot)
    for name, text in lines.items():
        console.print(Text.assemble((f"{name:<16} ", "bold"), text), soft_wrap=True, highlight=False)
    console.print(
        "Reinforcement brought out a way of answering that the base model knew but seldom used: it works the sum "
        "out digit by digit. It learnt no new arithmetic.",
        style="dim",
        soft_wrap=True,
    )


def save_plot(path: Path, rows: Sequence[Row], summary: Summary) -> None:
    """Loss and reward by step, as a PNG (or whatever the suffix says that matplotlib writes)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    sft = [row for row in rows if row.phase == "sft"]
    left.plot([row.step for row in sft], [row.loss for row in sft], color="tab:cyan", label="training batch")
    left.plot(
        [0, len(sft)],
        [summary.heldout_loss_before, summary.heldout_loss_after],
        "o--",
        color="tab:gray",
        label="held out",
    )
    left.set(title="Supervised: unseen documentation", xlabel="step", ylabel="nats a token")
    left.legend()
    rl = [row for row in rows if row.reward is not None]
    right.plot([row.step for row in rl], [row.reward for row in rl], color="tab:green", label="practice")
    right.plot([0, len(rl)], [summary.reward_before, summary.reward_after], "o--", color="tab:gray", label="held out")
    right.set(title="Reinforcement: additions", xlabel="step", ylabel="reward at temperature 1", ylim=(0, 1.02))
    right.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
