"""What the answers of both kinds of completion have in common: their head, their extras, their events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from farstep_sampler.openai_api.bodies import Common
from farstep_sampler.openai_api.choices import Counts, Gain
from farstep_sampler.openai_api.logprobs import Name
from farstep_sampler.openai_api.tokenizing import Tokenizer

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Answer:
    """The head of an answer and of each of its chunks.

    Args:
        source: the run, checkpoint or base model that answers.
    """

    body: Common
    kind: str
    prefix: str
    source: str
    counts: Counts
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def head(self, *, policy_version: int, is_chunk: bool = False) -> dict[str, Any]:
        kind = f"{self.kind}.chunk" if is_chunk and self.prefix == "chatcmpl" else self.kind
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.body.model,
            # With the seed, what makes an answer come again.
            "system_fingerprint": f"{self.source}@{policy_version}",
            "policy_version": policy_version,
        }

    def chunk(self, choices: Sequence[dict[str, Any]], *, policy_version: int, **more: Any) -> bytes:
        """An event; its usage is null until the last one, where usage was asked for."""
        usage = {"usage": None} if self.wants_usage else {}
        return event(self.head(policy_version=policy_version, is_chunk=True) | {"choices": choices} | usage | more)

    def last(self, *, policy_version: int) -> list[bytes]:
        """The events at the end of a stream."""
        if not self.wants_usage:
            return [DONE]
        return [self.chunk([], policy_version=policy_version, usage=self.counts.usage()), DONE]

    @property
    def wants_usage(self) -> bool:
        options = self.body.stream_options
        return options is not None and options.include_usage


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n\n"


def extras(body: Common, gain: Gain) -> dict[str, Any]:
    """vLLM's names for a choice's token ids, and ours for their versions and for what looked like calls."""
    if not body.return_token_ids:
        return {}
    errors = {"tool_call_errors": list(gain.call_errors)} if gain.call_errors else {}
    return {"token_ids": gain.tokens, "policy_versions": list(gain.versions)} | errors


def token_name(body: Common, tokenizer: Tokenizer) -> Name:
    if body.return_tokens_as_token_ids:
        return "token_id:{}".format
    return tokenizer.text_of_token
