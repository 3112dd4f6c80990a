"""Rollouts: a policy sampled directly or by agents, scored, and made into rows that can be trained.

A name is loaded when it is first used; none loads torch, transformers, starlette or uvicorn.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farstep.rollout.agent_runs import AgentContext
    from farstep.rollout.agents import AgentBatch, AgentItem, AgentTrajectory, AgentTrajectoryTurn
    from farstep.rollout.failures import (
        AgentFailure,
        BadToolArguments,
        BudgetExceeded,
        ModelRequestFailure,
        RetryPolicy,
        ToolFailure,
    )
    from farstep.rollout.kinds import LossMaskPolicy, SpanKind, spans_of
    from farstep.rollout.params import SamplingParams
    from farstep.rollout.records import RewardEvent, RewardRecord
    from farstep.rollout.results import Group, Rollout, RolloutSample
    from farstep.rollout.rewards import RewardError
    from farstep.rollout.session import RolloutSession
    from farstep.rollout.settings import Progress, RolloutSettings
    from farstep.rollout.stats import Funnel, OverLong, RolloutStats
    from farstep.rollout.turns import Turn

_NAMES_OF = {
    "farstep.rollout.agent_runs": "AgentContext",
    "farstep.rollout.agents": "AgentBatch AgentItem AgentTrajectory AgentTrajectoryTurn",
    "farstep.rollout.failures": (
        "AgentFailure BadToolArguments BudgetExceeded ModelRequestFailure RetryPolicy ToolFailure"
    ),
    "farstep.rollout.kinds": "LossMaskPolicy SpanKind spans_of",
    "farstep.rollout.params": "SamplingParams",
    "farstep.rollout.records": "RewardEvent RewardRecord",
    "farstep.rollout.results": "Group Rollout RolloutSample",
    "farstep.rollout.rewards": "RewardError",
    "farstep.rollout.session": "RolloutSession",
    "farstep.rollout.settings": "Progress RolloutSettings",
    "farstep.rollout.stats": "Funnel OverLong RolloutStats",
    "farstep.rollout.turns": "Turn",
}
_HOME_OF = {name: home for home, names in _NAMES_OF.items() for name in names.split()}

__all__ = [
    "AgentBatch",
    "AgentContext",
    "AgentFailure",
    "AgentItem",
    "AgentTrajectory",
    "AgentTrajectoryTurn",
    "BadToolArguments",
    "BudgetExceeded",
    "Funnel",
    "Group",
    "LossMaskPolicy",
    "ModelRequestFailure",
    "OverLong",
    "Progress",
    "RetryPolicy",
    "RewardError",
    "RewardEvent",
    "RewardRecord",
    "Rollout",
    "RolloutSample",
    "RolloutSession",
    "RolloutSettings",
    "RolloutStats",
    "SamplingParams",
    "SpanKind",
    "ToolFailure",
    "Turn",
    "spans_of",
]


def __getattr__(name: str) -> object:
    if home := _HOME_OF.get(name):
        found = globals()[name] = getattr(import_module(home), name)
        return found
    raise AttributeError(f"module 'farstep.rollout' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
