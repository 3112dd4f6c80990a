"""Chat completions: messages through the model's chat template, its text as a message, its calls as tool calls."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.openai_api.answer import Answer, extras, token_name
from farstep_sampler.openai_api.asking import Ask, Gains
from farstep_sampler.openai_api.bodies import ChatBody
from farstep_sampler.openai_api.choices import Counts, Gain, Reader
from farstep_sampler.openai_api.logprobs import chat_logprobs, prompt_logprobs, scores_of
from farstep_sampler.openai_api.model_names import ModelChoice
from farstep_sampler.openai_api.params import sampling_params
from farstep_sampler.openai_api.requests import sample_request
from farstep_sampler.openai_api.text import ChoiceText
from farstep_sampler.openai_api.tokenizing import Tokenizer
from farstep_sampler.openai_api.tools.choosing import Calling, calling_of
from farstep_sampler.openai_api.tools.parsing import Call, Part


@dataclass(slots=True)
class _Message:
    """One choice, as much of it as there is."""

    texts: list[str] = field(default_factory=list)
    num_calls: int = 0

    def deltas(self, parts: list[Part]) -> list[dict[str, Any]]:
        """What each part adds to the message, in the form of a chunk's `delta`."""
        return [self._delta(part) for part in parts]

    def _delta(self, part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            self.texts.append(part)
            return {"content": part}
        call = tool_call(part)
        self.num_calls += 1
        return {"tool_calls": [{"index": self.num_calls - 1, **call}]}


@dataclass(slots=True)
class Chat:
    """A chat request that was found good."""

    body: ChatBody
    tokenizer: Tokenizer
    ask: Ask
    answer: Answer
    calling: Calling

    @property
    def asks(self) -> list[Ask]:
        return [self.ask]

    def whole(self, responses: list[pb.SampleResponse]) -> dict[str, Any]:
        """The answer, at once."""
        response = responses[0]
        choices = [self._choice(gain) for gain in self.ask.reader.read_all(response)]
        answer = self.answer.head(policy_version=response.policy_version)
        answer |= {"choices": choices, "usage": self.answer.counts.usage()}
        if self.body.return_token_ids:
            answer["prompt_token_ids"] = list(self.ask.prompt)
        if self.body.prompt_logprobs is not None:
            topk = response.topk_prompt_logprobs if response.HasField("topk_prompt_logprobs") else None
            scores = scores_of(self.ask.prompt, response.prompt_logprobs, topk)
            answer["prompt_logprobs"] = prompt_logprobs(scores, self._name)
        return answer

    async def chunks(self, gains: Gains) -> AsyncGenerator[bytes, None]:
        """The answer as it comes: a role for each choice, what they gain, why they end."""
        messages = [_Message() for _ in range(self.body.n)]
        reader = self.ask.reader
        async with aclosing(gains):
            async for _, gain in gains:
                if gain is None:
                    for index in range(self.body.n):
                        yield self._chunk(index, {"role": "assistant", "content": ""}, first=True)
                    continue
                for chunk in self._gained(messages[gain.index], gain):
                    yield chunk
        for each in self.answer.last(policy_version=reader.policy_version):
            yield each

    def _gained(self, message: _Message, gain: Gain) -> list[bytes]:
        """A chunk for each part; the last one also has what belongs to the tokens, and why they ended."""
        deltas = message.deltas(list(gain.parts))
        finish = self._finish_reason(gain, message.num_calls)
        has_more = bool(gain.scores) and (self.body.logprobs or self.body.return_token_ids)
        if not deltas and (finish or has_more):
            deltas = [{}]
        chunks = [self._chunk(gain.index, delta) for delta in deltas[:-1]]
        return chunks + [self._chunk(gain.index, delta, gain=gain, finish=finish) for delta in deltas[-1:]]

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        gain: Gain | None = None,
        finish: str | None = None,
        first: bool = False,
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        if gain is not None:
            choice |= extras(self.body, gain)
            if self.body.logprobs:
                choice["logprobs"] = chat_logprobs(gain.scores, self._name)
        more = {"prompt_token_ids": list(self.ask.prompt)} if first and self.body.return_token_ids else {}
        return self.answer.chunk([choice], policy_version=self.ask.reader.policy_version, **more)

    def _choice(self, gain: Gain) -> dict[str, Any]:
        texts = "".join(part for part in gain.parts if isinstance(part, str))
        calls = [tool_call(part) for part in gain.parts if isinstance(part, Call)]
        message: dict[str, Any] = {"role": "assistant", "content": texts, "refusal": None}
        if calls:
            message |= {"content": texts or None, "tool_calls": calls}
        return {
            "index": gain.index,
            "message": message,
            "logprobs": chat_logprobs(gain.scores, self._name) if self.body.logprobs else None,
            "finish_reason": self._finish_reason(gain, len(calls)),
        } | extras(self.body, gain)

    def _finish_reason(self, gain: Gain, num_calls: int) -> str | None:
        if gain.stop_reason == "stop" and num_calls and not self.calling.is_named:
            return "tool_calls"
        return gain.stop_reason or None

    def _name(self, token: int) -> str:
        return token_name(self.body, self.tokenizer)(token)


async def plan_chat(
    body: ChatBody, model: ModelChoice, tokenizer: Tokenizer, *, source: str, tool_parser: str | None
) -> Chat:
    """Raises InvalidInput: naming the parameter."""
    if body.top_logprobs and not body.logprobs:
        raise InvalidInput("needs logprobs", field="top_logprobs")
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidInput("is not supported with stream", field="prompt_logprobs")
    calling = calling_of(body, tokenizer.chat_template, parser=tool_parser)
    prompt = await _prompt(body, tokenizer, with_tools=calling.is_on)
    params = sampling_params(body, max_tokens=_max_tokens(body, len(prompt)))
    calling.constrain(params)
    request = sample_request(body, model, prompt, params)
    request.topk_logprobs = body.top_logprobs
    decode = tokenizer.decoder(skip_special_tokens=body.skip_special_tokens and not calling.needs_special_tokens)
    make_text: Callable[[], ChoiceText] = partial(ChoiceText, decode, context=prompt[-8:], stops=body.stop_strings)
    counts = Counts(prompt=len(prompt))
    ask = Ask(prompt, request, model.gate, Reader(make_text, calling.make_parser, counts))
    return Chat(body, tokenizer, ask, Answer(body, "chat.completion", "chatcmpl", source, counts), calling)


async def _prompt(body: ChatBody, tokenizer: Tokenizer, *, with_tools: bool) -> list[int]:
    knows_developer = "developer" in tokenizer.chat_template
    messages = [
        message.for_template(f"messages[{index}]", knows_developer=knows_developer)
        for index, message in enumerate(body.messages)
    ]
    tools = [tool.for_template() for tool in body.tools or []] if with_tools else None
    settings: dict[str, Any] = {"add_generation_prompt": body.add_generation_prompt}
    if body.continue_final_message:
        settings["continue_final_message"] = True
    if body.chat_template_kwargs:
        settings["chat_template_kwargs"] = body.chat_template_kwargs
    prefix = tokenizer.checked(body.prefix_token_ids, field="prefix_token_ids") if body.prefix_token_ids else []
    return await tokenizer.render(messages, tools=tools, settings=settings, prefix=prefix)


def _max_tokens(body: ChatBody, prompt_len: int) -> int | None:
    """None: up to the model's context."""
    given = [value for value in (body.max_completion_tokens, body.max_tokens) if value is not None]
    if len(set(given)) > 1:
        raise InvalidInput("max_completion_tokens says otherwise", field="max_tokens")
    if body.max_context_len is not None:
        room = body.max_context_len - prompt_len
        if room < 1:
            raise InvalidInput(f"{prompt_len} tokens fill the context of {body.max_context_len}", field="messages")
        given = [min(room, *given)] if given else [room]
    return given[0] if given else None


def tool_call(call: Call) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
