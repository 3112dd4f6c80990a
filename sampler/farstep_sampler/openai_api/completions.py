"""Completions: prompts as texts or token ids, continued; `echo` says the prompt as well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.openai_api.answer import Answer, extras, token_name
from farstep_sampler.openai_api.asking import Ask, Gains
from farstep_sampler.openai_api.bodies import MAX_PROMPTS, CompletionBody
from farstep_sampler.openai_api.choices import Counts, Gain, Reader
from farstep_sampler.openai_api.logprobs import TokenScores, completion_logprobs, prompt_logprobs, scores_of
from farstep_sampler.openai_api.model_names import ModelChoice
from farstep_sampler.openai_api.params import sampling_params
from farstep_sampler.openai_api.requests import sample_request
from farstep_sampler.openai_api.text import ChoiceText
from farstep_sampler.openai_api.tokenizing import Tokenizer

DEFAULT_MAX_TOKENS = 16  # OpenAI's own


@dataclass(slots=True)
class Completions:
    """A request that was found good, with one ask for each of its prompts."""

    body: CompletionBody
    tokenizer: Tokenizer
    asks: list[Ask]
    echoes: list[str]  # what `echo` says of each prompt
    answer: Answer

    def whole(self, responses: list[pb.SampleResponse]) -> dict[str, Any]:
        """The answer, at once."""
        choices: list[dict[str, Any]] = []
        for ask, echo, response in zip(self.asks, self.echoes, responses, strict=True):
            gains = list(ask.reader.read_all(response)) or self._nothing(ask)
            choices += [self._choice(ask, echo, response, gain) for gain in gains]
        answer = self.answer.head(policy_version=min(response.policy_version for response in responses))
        return answer | {"choices": choices, "usage": self.answer.counts.usage()}

    async def chunks(self, gains: Gains) -> AsyncGenerator[bytes, None]:
        """The answer as it comes."""
        said: dict[int, int] = {}
        async with aclosing(gains):
            async for ask, gain in gains:
                version = ask.reader.policy_version
                if gain is None:
                    for chunk in self._first(ask):
                        yield chunk
                    continue
                choice = self._gained(gain, offset=said.get(gain.index, 0))
                said[gain.index] = said.get(gain.index, 0) + len(choice["text"])
                if choice["text"] or choice["finish_reason"] or choice["logprobs"] or self.body.return_token_ids:
                    yield self.answer.chunk([choice], policy_version=version)
        version = min(ask.reader.policy_version for ask in self.asks)
        for each in self.answer.last(policy_version=version):
            yield each

    def _first(self, ask: Ask) -> list[bytes]:
        """What is known of a prompt's choices before their first token, where that was asked for."""
        if not self.body.echo and not self.body.return_token_ids:
            return []
        echo = self.echoes[self.asks.index(ask)] if self.body.echo else ""
        ids = {"prompt_token_ids": list(ask.prompt)} if self.body.return_token_ids else {}
        first = ask.reader.offset
        return [
            self.answer.chunk(
                [{"index": index, "text": echo, "logprobs": None, "finish_reason": None} | ids],
                policy_version=ask.reader.policy_version,
            )
            for index in range(first, first + self.body.n)
        ]

    def _gained(self, gain: Gain, *, offset: int) -> dict[str, Any]:
        wants_logprobs = self.body.logprobs is not None and bool(gain.scores)
        return {
            "index": gain.index,
            "text": "".join(map(str, gain.parts)),
            "logprobs": completion_logprobs(gain.scores, self._name, offset=offset) if wants_logprobs else None,
            "finish_reason": gain.stop_reason or None,
        } | extras(self.body, gain)

    def _choice(self, ask: Ask, echo: str, response: pb.SampleResponse, gain: Gain) -> dict[str, Any]:
        choice = self._gained(gain, offset=0)
        prompt = self._prompt_scores(ask, response) if response.prompt_logprobs else []
        if self.body.echo:
            choice["text"] = echo + choice["text"]
            if self.body.logprobs is not None:
                choice["logprobs"] = completion_logprobs([*prompt, *gain.scores], self._name, offset=0)
        if self.body.return_token_ids:
            choice["prompt_token_ids"] = list(ask.prompt)
        if self.body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(prompt, self._name)
        return choice

    def _prompt_scores(self, ask: Ask, response: pb.SampleResponse) -> list[TokenScores]:
        topk = response.topk_prompt_logprobs if response.HasField("topk_prompt_logprobs") else None
        return scores_of(ask.prompt, response.prompt_logprobs, topk)

    def _nothing(self, ask: Ask) -> list[Gain]:
        """The choices of a request for no tokens at all."""
        return [Gain(ask.reader.offset + index, [], [], [], "length") for index in range(self.body.n)]

    def _name(self, token: int) -> str:
        return token_name(self.body, self.tokenizer)(token)


async def plan_completions(
    body: CompletionBody, model: ModelChoice, tokenizer: Tokenizer, *, source: str, max_seq_len: int
) -> Completions:
    """Raises InvalidInput: naming the parameter."""
    if body.best_of not in (None, body.n):
        raise InvalidInput("is not supported, but for the value of n", field="best_of")
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidInput("is not supported with stream", field="prompt_logprobs")
    if body.stream and body.echo and body.logprobs is not None:
        raise InvalidInput("is not supported with stream and echo", field="logprobs")
    if body.max_tokens == 0 and (body.stream or (not body.echo and body.prompt_logprobs is None)):
        raise InvalidInput("0 makes sense with echo or prompt_logprobs only, and without stream", field="max_tokens")
    prompts = _prompts(body)
    encoded = await asyncio.gather(*(_encoded(body, tokenizer, prompt, place) for place, prompt in prompts))
    counts = Counts(prompt=sum(map(len, encoded)))
    asks = [
        _ask(body, model, tokenizer, tokens, counts=counts, offset=index * max(body.n, 1), max_seq_len=max_seq_len)
        for index, tokens in enumerate(encoded)
    ]
    decode = tokenizer.decoder(skip_special_tokens=body.skip_special_tokens)
    echoes = [
        prompt if isinstance(prompt, str) else decode(tokens) if body.echo else ""
        for (_, prompt), tokens in zip(prompts, encoded, strict=True)
    ]
    return Completions(body, tokenizer, asks, echoes, Answer(body, "text_completion", "cmpl", source, counts))


def _ask(
    body: CompletionBody,
    model: ModelChoice,
    tokenizer: Tokenizer,
    prompt: list[int],
    *,
    counts: Counts,
    offset: int,
    max_seq_len: int,
) -> Ask:
    max_tokens = body.max_tokens
    if max_tokens is None:
        max_tokens = max(1, min(DEFAULT_MAX_TOKENS, max_seq_len - len(prompt)))
    request = sample_request(body, model, prompt, sampling_params(body, max_tokens=max_tokens))
    if body.logprobs is not None:
        request.topk_logprobs = body.logprobs
    if body.echo and (body.logprobs is not None or max_tokens == 0):
        request.include_prompt_logprobs = True
        request.topk_prompt_logprobs = max(body.logprobs or 0, body.prompt_logprobs or 0)
    decode = tokenizer.decoder(skip_special_tokens=body.skip_special_tokens)
    make_text: Callable[[], ChoiceText] = partial(ChoiceText, decode, context=prompt[-8:], stops=body.stop_strings)
    return Ask(prompt, request, model.gate, Reader(make_text, None, counts, offset=offset))


def _prompts(body: CompletionBody) -> list[tuple[str, str | list[int]]]:
    """Each prompt with its place in the body."""
    given = body.prompt
    if isinstance(given, str):
        return [("prompt", given)]
    if tokens := [token for token in given if isinstance(token, int)]:
        return [("prompt", tokens)]
    prompts = [prompt for prompt in given if not isinstance(prompt, int)]
    if not 0 < len(prompts) <= MAX_PROMPTS:
        raise InvalidInput(f"{len(prompts)} prompts, not 1 to {MAX_PROMPTS}", field="prompt")
    return [(f"prompt[{index}]", prompt) for index, prompt in enumerate(prompts)]


async def _encoded(body: CompletionBody, tokenizer: Tokenizer, prompt: str | list[int], place: str) -> list[int]:
    if isinstance(prompt, str):
        prompt = await tokenizer.encode(prompt, field=place, add_special_tokens=body.add_special_tokens)
    if not prompt:
        raise InvalidInput("has no tokens", field=place)
    return tokenizer.checked(prompt, field=place)
