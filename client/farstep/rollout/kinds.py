"""What the tokens of a row are, and which of them are trained: pure functions of span kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class SpanKind(StrEnum):
    """What a token belongs to. A message's frame, such as its role, belongs to the message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT_TEXT = "assistant_text"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    FINAL = "final"  # the text that a dialogue ends with
    CONTEXT = "context"  # what the assistant said and this row did not sample, and what templates put around it


@dataclass(frozen=True, slots=True)
class LossMaskPolicy:
    """Which kinds of spans are trained.

    Args:
        assistant_text: text that was sampled before the dialogue's end.
        assistant_tool_calls: sampled calls, with their marks.
        tool_results: what tools answered.
        final_assistant_text: the text that ends the dialogue, which is all there is where nobody answers; with
            `assistant_text` off it alone is trained.
        system_prompt, user_prompt: what was given.

    Assistant text that a row has in its context without having sampled it is never trained.
    """

    assistant_text: bool = True
    assistant_tool_calls: bool = True
    tool_results: bool = False
    final_assistant_text: bool = True
    system_prompt: bool = False
    user_prompt: bool = False

    def trains(self, kind: SpanKind) -> bool:
        match kind:
            case SpanKind.SYSTEM:
                return self.system_prompt
            case SpanKind.USER:
                return self.user_prompt
            case SpanKind.ASSISTANT_TEXT:
                return self.assistant_text
            case SpanKind.TOOL_CALL:
                return self.assistant_tool_calls
            case SpanKind.TOOL_RESULT:
                return self.tool_results
            case SpanKind.FINAL:
                return self.final_assistant_text
            case SpanKind.CONTEXT:
                return False

    def mask(self, kinds: Sequence[SpanKind]) -> list[float]:
        """[T], 1 where a token is trained; token 0 is predicted from nothing and never is."""
        weight_of = {kind: 1.0 if self.trains(kind) else 0.0 for kind in set(kinds)}
        mask = [weight_of[kind] for kind in kinds]
        mask[:1] = [0.0] * len(mask[:1])
        return mask


def spans_of(kinds: Sequence[SpanKind]) -> list[tuple[SpanKind, int, int]]:
    """Runs of one kind: (kind, first, last + 1)."""
    spans: list[tuple[SpanKind, int, int]] = []
    for index, kind in enumerate(kinds):
        if spans and spans[-1][0] == kind:
            spans[-1] = (kind, spans[-1][1], index + 1)
        else:
            spans.append((kind, index, index + 1))
    return spans
