"""Direct rollouts: one answer to each prompt, many times, by the SDK."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from farstep.errors import FarstepError
from farstep.results import SampledSequence
from farstep.rollout.agents import AgentItem
from farstep.rollout.assembling import Assembly
from farstep.rollout.failures import kind_of
from farstep.rollout.params import SamplingParams
from farstep.rollout.results import RolloutSample
from farstep.rollout.spans import Spans, for_template
from farstep.rollout.turns import Turn, shared_ids
from farstep.sampling import SamplingClient
from farstep.trainers.errors import RolloutError


class DirectSampler:
    """Samples all items of one prompt in one request."""

    def __init__(
        self, spans: Spans, assembly: Assembly, params: SamplingParams, *, in_flight: Literal["finish", "switch"]
    ) -> None:
        self._spans = spans
        self._assembly = assembly
        self._params = params
        self._in_flight: Literal["finish", "switch"] = in_flight
        self._began_at: dict[int, float] = {}

    def waiting(self) -> list[str]:
        now = time.monotonic()
        return [f"prompt {prompt}: the sampler, for {now - at:.0f} s" for prompt, at in list(self._began_at.items())]

    async def sample(self, client: SamplingClient, items: Sequence[AgentItem]) -> list[RolloutSample]:
        """A sample for each item; they are of one prompt. One that cannot be sampled has failed samples."""
        prompt = shared_ids(items[0].input_tokens or ())  # one for all of the group
        params = self._params
        if params.max_prompt_len is not None and len(prompt) > params.max_prompt_len:
            return [RolloutSample(item, outcome="dropped", reason="prompt_too_long") for item in items]
        room = params.room(len(prompt))
        if room == 0:
            return [RolloutSample(item, outcome="dropped", reason="prompt_too_long") for item in items]
        seed = params.seed_for(items[0].prompt_index)
        number = items[0].prompt_index
        self._began_at[number] = time.monotonic()
        try:
            future = await client.sample_async(
                prompt, len(items), params.for_sdk(room, seed=seed), in_flight=self._in_flight
            )
            result = await future
        except FarstepError as error:
            reason = kind_of(error)
            return [RolloutSample(item, outcome="failed", reason=reason, error=error) for item in items]
        finally:
            self._began_at.pop(number, None)
        pairs = zip(items, result.sequences, strict=True)
        return [self._sample(item, prompt, sequence) for item, sequence in pairs]

    def _sample(self, item: AgentItem, prompt: Sequence[int], sequence: SampledSequence) -> RolloutSample:
        messages = item.prompt if isinstance(item.prompt, list | tuple) else ()
        reply = {"role": "assistant", "content": self._text(sequence)}
        turn = Turn(
            prompt=prompt,
            tokens=shared_ids(sequence.tokens),
            logprobs=tuple(sequence.logprobs),
            versions=shared_ids(sequence.policy_versions),
            messages=tuple(messages),
            reply=reply,
            finish_reason=sequence.stop_reason,
            is_models_own=self._params.is_models_own,
        )
        return self._assembly.sample(item, [turn])

    def _text(self, sequence: SampledSequence) -> str:
        """What was said, up to a stop string."""
        text = self._spans.text(sequence.tokens, skip_special_tokens=self._params.skip_special_tokens)
        if sequence.stop_reason != "stop":
            return text
        ends = [place for stop in self._params.stop_strings if (place := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text


def encoded(tokenizer: Any, prompt: Any, index: int) -> list[int]:
    """The tokens of a prompt: text as it is, messages through the chat template.

    Raises:
        RolloutError: it is neither.
    """
    if isinstance(prompt, str):
        ids: list[int] = tokenizer.encode(prompt)
        return ids
    if isinstance(prompt, list | tuple) and prompt and all(isinstance(each, dict) for each in prompt):
        text = tokenizer.apply_chat_template(
            [for_template(message) for message in prompt], tokenize=False, add_generation_prompt=True
        )
        of_messages: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return of_messages
    raise RolloutError(
        f"is a {type(prompt).__name__}, neither text nor messages",
        field=f"prompts[{index}]",
        hint="token ids go to rollout_token_batch",
    )
