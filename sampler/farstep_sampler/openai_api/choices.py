"""What a request's samples say, from their tokens: text, calls, scores, and why each ended.

The same whether the samples come as events or all at once, so that a stream and a whole answer agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from farstep_proto.tensors import ids_from_bytes
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.openai_api.logprobs import TokenScores, scores_of
from farstep_sampler.openai_api.text import ChoiceText
from farstep_sampler.openai_api.tools.parsing import Part, ToolParser


@dataclass(frozen=True, slots=True)
class Gain:
    """What a choice has gained: N tokens with their scores and versions, and the text that they complete.

    `stop_reason` is "stop" or "length" with the last of them, else empty. `call_errors`, with the last as well, are
    the pieces of the choice's text that looked like calls and are none.
    """

    index: int
    parts: Sequence[Part]
    scores: Sequence[TokenScores]
    versions: Sequence[int]
    stop_reason: str
    call_errors: Sequence[str] = ()

    @property
    def tokens(self) -> list[int]:
        return [score.token for score in self.scores]


@dataclass(slots=True)
class Counts:
    """Of tokens, as they are charged elsewhere."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def usage(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(slots=True)
class Reader:
    """Reads the samples of one prompt.

    Args:
        offset: the index of its first choice.
        counts: of the whole request; this prompt's tokens are added.
    """

    make_text: Callable[[], ChoiceText]
    make_parser: Callable[[], ToolParser] | None
    counts: Counts
    offset: int = 0
    policy_version: int = 0
    _texts: dict[int, ChoiceText] = field(default_factory=dict)
    _parsers: dict[int, ToolParser] = field(default_factory=dict)

    def read(self, event: pb.SampleEvent) -> Gain | None:
        match event.WhichOneof("event"):
            case "begin":
                self.policy_version = event.begin.policy_version
            case "delta":
                return self._read_delta(event.delta)
            case "end":
                self.counts.cached += event.end.prompt_cache_hit_tokens
        return None

    def read_all(self, response: pb.SampleResponse) -> Iterator[Gain]:
        """A whole answer, one gain a choice."""
        for event in _events_of(response):
            if (gain := self.read(event)) is not None:
                yield gain

    def _read_delta(self, delta: pb.SampleDelta) -> Gain:
        tokens = ids_from_bytes(delta.tokens).tolist()
        self.counts.completion += len(tokens)
        if delta.index not in self._texts:
            self._texts[delta.index] = self.make_text()
            if self.make_parser is not None:
                self._parsers[delta.index] = self.make_parser()
        text = self._texts[delta.index].push(tokens, delta.stop_reason)
        parser = self._parsers.get(delta.index)
        parts: list[Part] = [text] if text else []
        if parser is not None:
            parts = parser.push(text) if text else []
            if delta.stop_reason:
                parts += parser.finish()
        versions = np.frombuffer(delta.policy_versions, "<i8").tolist() or [self.policy_version] * len(tokens)
        topk = delta.topk_logprobs if delta.HasField("topk_logprobs") else None
        scores = scores_of(tokens, delta.logprobs, topk)
        errors = parser.errors if parser is not None and delta.stop_reason else ()
        return Gain(self.offset + delta.index, parts, scores, versions, delta.stop_reason, errors)


def _events_of(response: pb.SampleResponse) -> Iterator[pb.SampleEvent]:
    yield pb.SampleEvent(begin=pb.SampleBegin(policy_version=response.policy_version))
    for index, sequence in enumerate(response.sequences):
        delta = pb.SampleDelta(
            index=index,
            tokens=sequence.tokens,
            logprobs=sequence.logprobs,
            policy_versions=sequence.policy_versions,
            stop_reason=sequence.stop_reason,
        )
        if sequence.HasField("topk_logprobs"):
            delta.topk_logprobs.CopyFrom(sequence.topk_logprobs)
        yield pb.SampleEvent(delta=delta)
    yield pb.SampleEvent(end=pb.SampleEnd(prompt_cache_hit_tokens=response.prompt_cache_hit_tokens))
