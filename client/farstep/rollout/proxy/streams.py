"""A streamed answer, put together while it passes by."""

from __future__ import annotations

import json
from typing import Any


class StreamedAnswer:
    """Chunks become the answer that would have come at once.

    Args:
        num_choices: how many were asked for.
    """

    def __init__(self, num_choices: int = 1) -> None:
        self._num_choices = num_choices
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self.has_failed = False
        self._is_whole = False

    def read(self, line: str) -> bool:
        """Takes a line of the stream; says whether with it all choices have ended, once."""
        if not line.startswith("data:"):
            return False
        data = line.removeprefix("data:").strip()
        if data == "[DONE]" or self.has_failed:
            return False
        chunk = json.loads(data)
        if "error" in chunk:
            self.has_failed = True
            return False
        for name in ("id", "policy_version", "prompt_token_ids"):
            if chunk.get(name) is not None:
                self._head[name] = chunk[name]
        for choice in chunk.get("choices") or ():
            self._add(choice)
        if self._is_whole or len(self._choices) < self._num_choices:
            return False
        self._is_whole = all(choice["finish_reason"] for choice in self._choices.values())
        return self._is_whole

    def answer(self) -> dict[str, Any]:
        return {**self._head, "choices": [self._choices[index] for index in sorted(self._choices)]}

    def _add(self, gained: dict[str, Any]) -> None:
        choice = self._choices.setdefault(
            gained["index"],
            {
                "index": gained["index"],
                "message": {"role": "assistant", "content": None},
                "token_ids": [],
                "policy_versions": [],
                "logprobs": {"content": []},
                "finish_reason": None,
            },
        )
        message, delta = choice["message"], gained.get("delta") or {}
        if delta.get("content"):
            message["content"] = (message["content"] or "") + delta["content"]
        for call in delta.get("tool_calls") or ():
            message.setdefault("tool_calls", []).append({key: call[key] for key in call if key != "index"})
        for name in ("token_ids", "policy_versions"):
            choice[name] += gained.get(name) or []
        choice["logprobs"]["content"] += (gained.get("logprobs") or {}).get("content") or []
        for name in ("finish_reason", "tool_call_errors"):
            if gained.get(name):
                choice[name] = gained[name]
