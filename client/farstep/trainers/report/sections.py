"""What the report says of a run, as plain values: facts, charts, the funnel, rewards, tokens, a failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from farstep.trainers.report.charts import Chart, Histogram, chart, histogram, number
from farstep.trainers.report.record import RunRecord

# Charts that come first, in this order: title, unit, and the metrics in one picture.
_FIRST = (
    ("Reward", "", ("rollout/reward_mean", "rollout/reward_min", "rollout/reward_max")),
    ("Loss", "", ("loss", "eval/loss")),
    ("Accuracy", "", ("accuracy", "eval/accuracy")),
    ("Margin", "", ("margin", "eval/margin")),
    ("Gradient norm", "", ("grad_norm",)),
    ("Learning rate", "", ("learning_rate",)),
    ("Length of answers", "tokens", ("rollout/response_len_mean", "rollout/response_len_max")),
    ("Speed", "tokens a second", ("tokens_per_s",)),
)
# What is said in large type, where it is known.
_HEADLINE = (
    ("Reward", "rollout/reward_mean"),
    ("Accuracy", "accuracy"),
    ("Accuracy, evaluation", "eval/accuracy"),
    ("Loss", "loss"),
    ("Loss, evaluation", "eval/loss"),
)
_FUNNEL = ("asked", "sampled", "parsed", "scored", "trained")
_REMEDIES = (
    ("OutOfMemory", "Lower mini_bs, data.max_length or model.lora.r: a pass over the model did not fit its memory."),
    ("NonFinite", "A loss or gradient was no number: lower optimizer.lr, or set optimizer.grad_clip."),
    ("not_finite", "A loss or gradient was no number: lower optimizer.lr, or set optimizer.grad_clip."),
    (
        "Transport",
        "The server could not be reached. `farstep status` says what runs; with auto_resume the run goes on from its "
        "last checkpoint.",
    ),
    ("Provisioning", "No trainer or sampler could be started. `farstep logs` says why."),
    ("StorageFull", "The server's disk is full. Remove checkpoints with `farstep checkpoints delete`."),
    ("DataError", "A row is wrong. `farstep check` reads all of them without a GPU."),
    ("ConfigError", "A setting is wrong. `farstep check` says which before anything is paid for."),
    ("RolloutError", "Rollouts could not go on: look at the reward function and the agent with `farstep check`."),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number in large type: the last one, and what was before it."""

    name: str
    last: str
    told: str


@dataclass(frozen=True, slots=True)
class Stage:
    """Of the funnel; `share` of the first stage, in percent."""

    name: str
    count: str
    share: float


@dataclass(frozen=True, slots=True)
class Token:
    """`mask`: prompt, trained, negative or untrained. Levels are 0 to 5; 0 says that nothing is known."""

    text: str
    mask: str
    logprob: int
    advantage: str
    title: str


@dataclass(frozen=True, slots=True)
class TokenRow:
    title: str
    tokens: Sequence[Token]
    left_out: int


@dataclass(frozen=True, slots=True)
class Failure:
    error_class: str
    error: str
    step: int
    remedy: str
    checkpoint: str


def facts(run: RunRecord) -> dict[str, str]:
    started, end = run.started, run.end or {}
    total = started.get("total_steps")
    shown = {
        "Trainer": started.get("trainer"),
        "Base model": started.get("base_model"),
        "Run": started.get("run_id"),
        "Steps": f"{run.steps:,} of {total:,}" if isinstance(total, int) else f"{run.steps:,}",
        "Examples": _counted(started.get("num_examples")),
        "Dry run": "yes" if started.get("dry_run") else None,
        "Gone on with": _times(run.num_resumptions),
        "Began": _moment(run.began),
        "Took": _duration(run.took_s),
        "Ended because": end.get("reason"),
        "Folder": str(run.folder),
    }
    return {name: str(value) for name, value in shown.items() if value not in (None, "")}


def charts(run: RunRecord) -> tuple[list[Chart], list[Chart]]:
    """Those that one looks at first, and all the others."""
    series = run.series()
    first: list[Chart] = []
    used: set[str] = set()
    for title, unit, names in _FIRST:
        known = {name: series[name] for name in names if name in series}
        used.update(known)
        if known and (made := chart(title, known, unit)) is not None:
            first.append(made)
    rest = [chart(name, {name: points}) for name, points in sorted(series.items()) if name not in used]
    return first, [each for each in rest if each is not None]


def headline(run: RunRecord) -> list[Figure]:
    """What one wants to know first: the last value of each, and the first."""
    found = []
    series = run.series()
    for title, name in _HEADLINE:
        known = [(step, value) for step, value in series.get(name, ()) if value is not None]
        if known:
            (first_step, first), (_, last) = known[0], known[-1]
            told = f"from {number(first)} at step {first_step:,}" if len(known) > 1 else f"at step {first_step:,}"
            found.append(Figure(title, number(last), told))
    return found


def funnel(run: RunRecord) -> list[Stage]:
    """Of samples where there were rollouts (`asked` is the first stage then), else of rows."""
    sums: dict[str, float] = {}
    for event in run.rollouts:
        for name, count in (event.get("funnel") or {}).items():
            sums[name] = sums.get(name, 0.0) + count
    if sums.get("asked"):
        return [Stage(name, f"{sums.get(name, 0):,.0f}", 100 * sums.get(name, 0) / sums["asked"]) for name in _FUNNEL]
    report = run.started.get("data") or {}
    rows = report.get("rows")
    if not rows:
        return []
    trained = int(run.started.get("num_examples") or 0)
    stages = [("rows read", rows), ("rows used", report.get("used", 0))]
    found = [Stage(name, f"{count:,}", 100 * count / rows) for name, count in stages]
    return [*found, Stage("examples", f"{trained:,}", min(100.0, 100 * trained / rows))]


def losses_on_the_way(run: RunRecord) -> dict[str, str]:
    """Why samples or rows were left out, cut or tried again, and how often."""
    sums: dict[str, float] = {}
    for event in run.rollouts:
        for group in ("dropped", "failed"):
            for reason, count in (event.get(group) or {}).items():
                name = f"{group} as {str(reason).replace('_', ' ')}"
                sums[name] = sums.get(name, 0.0) + count
    report = run.started.get("data") or {}
    for name in ("truncated", "dropped_no_targets", "dropped_too_long", "dropped_turns", "prompts_cut", "retokenized"):
        if report.get(name):
            sums[name.replace("_", " ")] = report[name]
    return {name: f"{value:,.0f}" for name, value in sums.items() if value}


def rewards(run: RunRecord) -> list[Histogram]:
    """Of the first batch that was kept, one in the middle, and the last."""
    kept = [
        (batch["step"], values)
        for batch in run.batches
        if (values := [value for value in batch.get("rewards") or () if isinstance(value, int | float)])
    ]
    if not kept:
        return []
    low = min(min(values) for _, values in kept)
    high = max(max(values) for _, values in kept)
    chosen = [kept[index] for index in sorted({0, len(kept) // 2, len(kept) - 1})]
    made = [histogram(f"Step {step}: {len(values)} samples", values, low=low, high=high) for step, values in chosen]
    return [each for each in made if each is not None]


def token_rows(run: RunRecord) -> list[TokenRow]:
    """Rows of the first and the last batch that were kept."""
    if not run.batches:
        return []
    chosen = [run.batches[index] for index in sorted({0, len(run.batches) - 1})]
    found = [_token_row(batch["step"], number_, row) for batch in chosen
             for number_, row in enumerate(batch.get("rows") or ())]  # fmt: skip
    return [each for each in found if each.tokens]


def failure(run: RunRecord) -> Failure | None:
    end = run.end
    if end is None or end["type"] != "failed":
        return None
    kind, text = str(end.get("error_class", "")), str(end.get("error", ""))
    lost = any("loss" in event.get("not_finite", ()) for event in run.logs.values())
    remedy = next(
        (advice for sign, advice in _REMEDIES if sign in kind or sign in text or (sign == "not_finite" and lost)), ""
    )
    states = [event for event in run.checkpoints if event.get("kind") == "state"]
    saved = f"step {states[-1].get('step')}: {states[-1].get('path')}" if states else ""
    return Failure(kind, text, int(end.get("step") or 0), remedy, saved)


def samples(run: RunRecord) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Completions of the first and the last rollout, and of the first and the last evaluation, that showed some."""
    found = []
    for title, events in (("Rollout", run.rollouts), ("Evaluation", list(run.evals.values()))):
        shown = [(f"{title} after {_steps(event.get('step'))}", list(event["samples"]))
                 for event in events if event.get("samples")]  # fmt: skip
        found += [shown[index] for index in sorted({0, len(shown) - 1})] if shown else []
    return found


def _token_row(step: int, index: int, row: Mapping[str, Any]) -> TokenRow:
    ids = row.get("tokens") or []
    texts = row.get("text") or [f"{token} " for token in ids]
    names = ("mask", "prompt_mask", "logprobs", "advantages", "kinds")
    columns = {name: row.get(name) or [None] * len(ids) for name in names}
    has_advantages = any(value for value in columns["advantages"])
    largest = max([abs(value) for value in columns["advantages"] if value] or [1.0])
    tokens = []
    for place, (token, text, mask, prompt, logprob, advantage, span) in enumerate(
        zip(ids, texts, *columns.values(), strict=False)
    ):
        kind = _mask_of(mask, prompt, place, -1.0 if row.get("name") == "rejected" else advantage)
        known = logprob if kind != "prompt" and place else None
        told = [f"token {place}: id {token}", *([str(span).replace("_", " ")] if span else [])]
        told += [f"weight {number(mask or 0.0)}"]
        told += [f"logprob {number(known)}"] if known is not None else []
        told += [f"advantage {number(advantage)}"] if has_advantages and advantage is not None else []
        tokens.append(
            Token(str(text), kind, _logprob_level(known), _advantage_level(advantage, largest), ", ".join(told))
        )
    title = f"Step {step}, row {int(row.get('row') or index) + 1}"
    if row.get("name"):
        title += f", {row['name']}"
    if row.get("reward") is not None:
        title += f", reward {number(row['reward'])}"
    return TokenRow(title, tokens, max(0, int(row.get("num_tokens") or len(ids)) - len(tokens)))


def _mask_of(mask: float | None, prompt: int | None, place: int, advantage: float | None) -> str:
    if mask and place:
        return "trained" if mask * (advantage or 1) > 0 else "negative"
    return "prompt" if prompt or not place else "untrained"


def _logprob_level(value: float | None) -> int:
    """1: certain … 5: less likely than one in 150."""
    if value is None:
        return 0
    return 1 + sum(value < bound for bound in (-0.1, -0.7, -2.0, -5.0))


def _advantage_level(value: float | None, largest: float) -> str:
    """`p1` to `p3`, `n1` to `n3`, or nothing."""
    if not value:
        return ""
    level = 1 + min(2, int(3 * abs(value) / largest - 1e-9))
    return f"{'p' if value > 0 else 'n'}{level}"


def _times(count: int) -> str | None:
    return {0: None, 1: "once", 2: "twice"}.get(count, f"{count} times")


def _steps(count: object) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _counted(value: object) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _moment(text: object) -> str:
    try:
        return f"{datetime.fromisoformat(str(text)):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return ""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
