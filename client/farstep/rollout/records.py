"""`RewardRecord`: one sample as a reward looks at it. Holds no decision of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from farstep.rollout.agents import AgentItem
from farstep.rollout.kinds import LossMaskPolicy
from farstep.rollout.merging import Row
from farstep.rollout.spans import Spans
from farstep.rollout.turns import Message, Turn, text_of

EventKind = Literal["message", "assistant", "tool_call", "tool_result", "parse_error", "cut"]
_ANSWERS = ("answer", "solution", "solutions", "target", "label")


@dataclass(frozen=True, slots=True)
class RewardEvent:
    """One thing that happened, in order.

    Args:
        turn: of the answer that it belongs to, counted from 0; what was given before the first answer has 0.
        name: the role of a message, or the tool that was called or answered.
        content: a text, a call's arguments as JSON text, or a tool's answer.
    """

    kind: EventKind
    turn: int
    content: str
    name: str = ""
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class RewardRecord:
    """One sample.

    Args:
        prompt: the text that was given: a prompt, or the last user message before the first answer.
        completion: what the assistant said in all turns, joined by line breaks; calls are no part of it.
        rendered_completion: everything after the first prompt as the policy saw it, special tokens included.
        final_answer: the last answer's text; empty where the last answer called a tool.
        answer: what the record says is right, if anything.
        messages: the whole dialogue.
        tool_calls: `{name, arguments}` of each, arguments as JSON text.
        tool_results: `{tool_call_id, name, content}` of each.
        tokens, logprobs, loss_mask: [T] of the sample's last row.
        metadata: `prompt_index`, `sample_index`, `num_turns`, `num_rows`, `finish_reason`, `policy_version`.
    """

    prompt: str
    completion: str
    rendered_completion: str
    final_answer: str
    answer: Any
    messages: list[Message]
    trace: list[RewardEvent]
    tool_calls: list[dict[str, Any]]
    tool_results: list[dict[str, Any]]
    tokens: list[int]
    logprobs: list[float]
    loss_mask: list[float]
    source_record: Mapping[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)


def make_record(
    item: AgentItem,
    turns: Sequence[Turn],
    rows: Sequence[Row],
    spans: Spans,
    policy: LossMaskPolicy,
    *,
    skip_special_tokens: bool = True,
    answer_key: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> RewardRecord:
    last, row = turns[-1], rows[-1]
    texts = [_said(turn, spans, skip_special_tokens) for turn in turns]
    messages = [*last.messages, last.reply] if last.messages else []
    first = row.is_sampled.index(True) if True in row.is_sampled else len(row.tokens)
    trace = _trace(turns, texts)
    versions = [version for each in rows for version in each.sampled_versions]
    return RewardRecord(
        prompt=_prompt(item, turns[0], spans),
        completion="\n".join(text for text in texts if text),
        rendered_completion=spans.text(row.tokens[first:]),
        final_answer="" if last.tool_calls else texts[-1],
        answer=item.answer if item.answer is not None else _answer(item.record, answer_key),
        messages=list(messages),
        trace=trace,
        tool_calls=[
            {"name": call["name"], "arguments": call["arguments"]} for turn in turns for call in turn.tool_calls
        ],
        tool_results=[
            {"tool_call_id": event.call_id, "name": event.name, "content": event.content}
            for event in trace
            if event.kind == "tool_result"
        ],
        tokens=list(row.tokens),
        logprobs=list(row.logprobs),
        loss_mask=policy.mask(row.kinds),
        source_record=item.record,
        metadata={
            "prompt_index": item.prompt_index,
            "sample_index": item.sample_index,
            "num_turns": len(turns),
            "num_rows": len(rows),
            "finish_reason": last.finish_reason,
            "policy_version": min(versions, default=0),
            **(metadata or {}),
        },
    )


def _said(turn: Turn, spans: Spans, skip_special_tokens: bool) -> str:
    """A turn's text; a turn without messages was sampled from tokens, and its text is all of it."""
    return turn.text if turn.reply else spans.text(turn.tokens, skip_special_tokens=skip_special_tokens)


def _prompt(item: AgentItem, first: Turn, spans: Spans) -> str:
    if isinstance(item.prompt, str):
        return item.prompt
    users = [text_of(message) for message in first.messages if message.get("role") == "user"]
    return users[-1] if users else spans.text(first.prompt)


def _answer(record: Mapping[str, Any], key: str | None) -> Any:
    if key is not None:
        return record.get(key)
    return next((record[each] for each in _ANSWERS if each in record), None)


def _trace(turns: Sequence[Turn], texts: Sequence[str]) -> list[RewardEvent]:
    events: list[RewardEvent] = []
    num_told = 0
    names: dict[str, str] = {}
    for index, (turn, text) in enumerate(zip(turns, texts, strict=True)):
        if len(turn.messages) < num_told:  # another dialogue of the same sample
            num_told = 0
        events += [_given(message, index, names) for message in turn.messages[num_told:]]
        num_told = len(turn.messages) + 1
        if text:
            events.append(RewardEvent("assistant", index, text, "assistant"))
        for call in turn.tool_calls:
            names[call["id"]] = call["name"] or ""
            events.append(RewardEvent("tool_call", index, call["arguments"], call["name"] or "", call["id"]))
        events += [RewardEvent("parse_error", index, error) for error in turn.call_errors]
        if turn.finish_reason == "length":
            events.append(RewardEvent("cut", index, "length"))
    return events


def _given(message: Message, turn: int, names: Mapping[str, str]) -> RewardEvent:
    role = str(message.get("role", ""))
    if role != "tool":
        return RewardEvent("message", turn, text_of(message), role)
    call_id = str(message.get("tool_call_id") or "")
    return RewardEvent("tool_result", turn, text_of(message), names.get(call_id, message.get("name") or ""), call_id)
