"""An evaluation by generation: one answer to each prompt, scored as in training. It touches no weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from farstep.trainers.data.collection import given_rows
from farstep.trainers.errors import TrainerError
from farstep.trainers.metrics import TrainMetrics
from farstep.trainers.rl.prompt_rows import prompt_rows
from farstep.trainers.rows import NoRows

if TYPE_CHECKING:
    from farstep.trainers.rl.trainer import RLTrainer


def evaluate(trainer: RLTrainer, test_data: Any) -> TrainMetrics:
    """As `RLTrainer.evaluate`."""
    trainer.ensure_init("evaluate")
    rows: Any = trainer.eval_rows
    if test_data is not None:
        is_empty = not len(test_data)
        raw = None if is_empty else given_rows(test_data, field="test_data")
        rows = NoRows() if raw is None else prompt_rows(trainer.config, trainer.get_tokenizer(), raw, shuffle=False)
    if rows is None:
        raise TrainerError("there is nothing to evaluate on", stage="evaluate",
                           hint="give test_data here or to the constructor, or data.eval_sources")  # fmt: skip
    rewards: list[float] = []
    lengths: list[int] = []
    shown: list[dict[str, str]] = []
    for placed in rows.batches(0):
        rollout = trainer.collect(placed, n_samples=1).result()
        rewards += rollout.stats.rewards
        lengths += rollout.stats.response_tokens
        shown += rollout.shown(trainer.config.sample_log_count - len(shown))
    found = _metrics(rewards, lengths)
    result = TrainMetrics(math.nan, found.get("eval/reward_mean"), rows.num_batches, found)
    trainer.report_evaluation(result, [{**each, "reward": str(each["reward"])} for each in shown])
    return result


def _metrics(rewards: list[float], lengths: list[int]) -> dict[str, float]:
    if not rewards:
        return {}
    mean = sum(rewards) / len(rewards)
    spread = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return {
        "eval/reward_mean": mean,
        "eval/reward_std": spread,
        "eval/accuracy": mean,
        "eval/response_len_mean": sum(lengths) / max(len(lengths), 1),
        "eval/scored": float(len(rewards)),
    }
