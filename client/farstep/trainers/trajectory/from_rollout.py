"""Rollouts as trajectories: the one place where a sample becomes an item."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from farstep.trainers.trajectory.item import Status, TrajectoryItem

if TYPE_CHECKING:
    from farstep.rollout.results import Rollout, RolloutSample

_STATUS: Mapping[str, Status] = {"ok": "completed", "failed": "failed", "dropped": "dropped"}
_IDS = ("task_id", "id")


def items_of_rollout(
    rollout: Rollout, *, agent_id: str = "", with_tokens: bool = False, timestamp: float | None = None
) -> list[TrajectoryItem]:
    """An item for each sample, in their order, failed and dropped ones too.

    The task is the record's `task_id` or `id`, else the number of its prompt; samples of one task are its steps.

    Args:
        with_tokens: keep each row's `tokens`, `logprobs`, `loss_mask`, `policy_versions` and `kinds` in the metadata.
        timestamp: of all of them; None: now.
    """
    now = time.time() if timestamp is None else timestamp
    steps: dict[str, int] = {}
    items = []
    for sample in rollout.samples:
        task_id = _task_of(sample)
        steps[task_id] = steps.get(task_id, -1) + 1
        items.append(
            item_of_sample(sample, agent_id=agent_id, step=steps[task_id], with_tokens=with_tokens, timestamp=now)
        )
    return items


def item_of_sample(
    sample: RolloutSample, *, agent_id: str = "", step: int = 0, with_tokens: bool = False, timestamp: float = 0.0
) -> TrajectoryItem:
    """One sample. Of one that failed before its first answer there is the prompt and the reason."""
    record, task_id = sample.record, _task_of(sample)
    metadata: dict[str, Any] = {
        "prompt_index": sample.prompt_index,
        "sample_index": sample.sample_index,
        "policy_version": sample.policy_version,
        "reason": sample.reason,
        **({"reward_parts": dict(sample.reward_parts)} if sample.reward_parts else {}),
    }
    if with_tokens:
        metadata["rows"] = [
            {
                "tokens": list(row.tokens),
                "logprobs": row.logprobs,
                "loss_mask": list(row.loss_mask),
                "policy_versions": list(row.metadata.get("policy_versions", ())),
                "kinds": list(row.metadata.get("kinds", ())),
            }
            for row in sample.rows
        ]
    about: dict[str, Any] = {
        "id": f"{task_id}/{agent_id}/{step}" if agent_id else f"{task_id}/{step}",
        "task_id": task_id,
        "agent_id": agent_id,
        "step": step,
        "timestamp": timestamp,
        "score": sample.reward,
        "status": _STATUS[sample.outcome],
        "metadata": metadata,
    }
    if record is None:
        return TrajectoryItem(**about, input=sample.item.prompt if isinstance(sample.item.prompt, str) else "")
    metadata |= {name: value for name, value in record.metadata.items() if name not in metadata}
    return TrajectoryItem(
        **about,
        input=record.prompt,
        output=record.final_answer or record.completion,
        messages=[dict(message) for message in record.messages],
        tool_calls=[call for turn in sample.turns for call in turn.tool_calls],
    )


def _task_of(sample: RolloutSample) -> str:
    record = sample.item.record
    return next((str(record[key]) for key in _IDS if key in record), str(sample.prompt_index))
