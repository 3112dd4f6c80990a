"""What is public, how light it is, and what is said where libraries or settings are missing."""

import json
import subprocess
import sys
from typing import Any

import pytest

import farstep
import farstep.rollout
from farstep.rollout import RolloutSettings
from farstep.rollout.proxy.server import Proxy
from farstep.trainers.errors import RolloutError


def test_names_are_loaded_when_they_are_used() -> None:
    assert farstep.rollout.__all__ == sorted(farstep.rollout.__all__) == sorted(farstep.rollout._HOME_OF)
    code = """
import json, sys, farstep.rollout
for name in farstep.rollout.__all__: getattr(farstep.rollout, name)
print(json.dumps([name for name in ("torch", "transformers", "starlette", "uvicorn", "httpx") if name in sys.modules]))
"""
    assert json.loads(subprocess.check_output([sys.executable, "-c", code])) == []
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        farstep.rollout.Nothing  # noqa: B018


@pytest.mark.parametrize("library", ["uvicorn", "starlette"])
def test_a_proxy_without_its_libraries(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    proxy = Proxy(RolloutSettings(), endpoint=None, policy_version=None)  # type: ignore[arg-type]
    with pytest.raises(farstep.MissingExtraError, match=r"pip install 'farstep\[trainers\]'"):
        proxy.start()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_running_prompts": 0},
        {"max_running_rewards": 1.5},
        {"max_resamples": True},
        {"max_row_len": -1},
        {"timeout_s": 0},
        {"stall_warning_s": -1.0},
        {"max_staleness": -1},
        {"in_flight": "often"},
        {"on_failure": "ignore"},
        {"on_reward_error": "ignore"},
        {"max_staleness": "1"},
        {"timeout_s": "1"},
        {"reward_timeout_s": 0},
        {"failure_reward": float("nan")},
        {"sampling_params": {"max_new_tokens": 3}},
        {"retries": 3},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(RolloutError, match=next(iter(wrong))):
        RolloutSettings(**wrong)
