"""`LLMCallOperator`: a question to a model, by a system prompt and a user prompt that can be tuned."""

from __future__ import annotations

from typing import Any

from farstep.trainers.chat import as_chat
from farstep.trainers.operators.operator import Operator
from farstep.trainers.operators.template import filled, placeholders
from farstep.trainers.operators.tunable import TunableSpec

MAX_CHARS = 20_000


class LLMCallOperator(Operator):
    """
    Args:
        chat: a `SamplingClient`, or a function of messages that gives a text.
        system_prompt, user_prompt: templates. Which placeholders each has is fixed by what it begins with.
        sampling: of `SamplingParams`, where `chat` is a client.
    """

    def __init__(
        self, name: str, chat: object, *, system_prompt: str = "", user_prompt: str = "{input}", **sampling: Any
    ) -> None:
        super().__init__(name, [_prompt("system_prompt", system_prompt), _prompt("user_prompt", user_prompt)])
        self._chat = as_chat(chat, **sampling)

    @property
    def inputs(self) -> frozenset[str]:
        """The names of what is put into its prompts."""
        return placeholders(self["system_prompt"]) | placeholders(self["user_prompt"])

    async def _execute(self, **inputs: Any) -> str:
        system, user = filled(self["system_prompt"], inputs), filled(self["user_prompt"], inputs)
        messages = [{"role": "system", "content": system}] if system else []
        return (await self._chat([*messages, {"role": "user", "content": user}])).text


def _prompt(name: str, text: str) -> TunableSpec:
    return TunableSpec(name, "prompt", text, {"placeholders": sorted(placeholders(text)), "max_chars": MAX_CHARS})
