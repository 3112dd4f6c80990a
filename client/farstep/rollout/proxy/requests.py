"""What an agent's request becomes on its way to the sampler, and the answer to one that has no room."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from farstep.rollout.collecting import Collector
from farstep.rollout.params import SamplingParams

_MOST_TOKENS = ("max_tokens", "max_completion_tokens")


def forwarded(
    body: Mapping[str, Any], params: SamplingParams, collector: Collector | None, number: int, *, in_flight: str
) -> dict[str, Any]:
    """The request with what training wants of its answer, and the session's parameters where it leaves them open."""
    asked = {key: value for key, value in body.items() if value is not None}
    defaults = {key: value for key, value in params.for_openai().items() if value is not None}
    if any(name in asked for name in _MOST_TOKENS):
        defaults.pop("max_tokens", None)
    whole = {**defaults, **asked, "logprobs": True, "return_token_ids": True, "in_flight": in_flight}
    if params.max_context_len is not None:
        whole["max_context_len"] = params.max_context_len
    if collector is not None:
        if "seed" not in asked and (seed := params.seed_for(*collector.seed_place, number)) is not None:
            whole["seed"] = seed
        if (prefix := collector.prefix_of(asked.get("messages") or ())) is not None:
            whole["prefix_token_ids"] = prefix
    return whole


def empty_answer(body: Mapping[str, Any], *, model: str, policy_version: int) -> dict[str, Any]:
    """Nothing said, with the finish reason "length": there is no room for more."""
    number = body.get("n")
    count = number if isinstance(number, int) and number > 0 else 1
    choice = {
        "message": {"role": "assistant", "content": "", "refusal": None},
        "finish_reason": "length",
        "logprobs": {"content": []},
        "token_ids": [],
        "policy_versions": [],
    }
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.get("model") or model,
        "policy_version": policy_version,
        "choices": [{"index": index, **choice} for index in range(count)],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def empty_chunks(body: Mapping[str, Any], *, model: str, policy_version: int) -> bytes:
    """The same as a stream."""
    answer = empty_answer(body, model=model, policy_version=policy_version)
    answer["object"] = "chat.completion.chunk"
    del answer["usage"]
    for choice in answer["choices"]:
        choice["delta"] = choice.pop("message")
    return f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n".encode()
