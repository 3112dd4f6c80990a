"""Rows of turns: one where tokens go on, another where they do not, and the kind of every token."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep.rollout.kinds import LossMaskPolicy, SpanKind, spans_of
from farstep.rollout.merging import UNSAMPLED, Row, merge
from farstep.rollout.spans import Spans, common_length
from farstep.rollout.turns import Turn
from farstep.trainers.errors import RolloutError
from tests.unit.client.rollout.dialogues import assistant, turn, user

SYSTEM = {"role": "system", "content": "Be brief."}
# With a preamble of its own where there are tools, and a system message that nobody gave where there is none.
PREAMBLE = """{%- if tools %}{{ '<|im_start|>system\nYou have tools<|im_end|>\n' }}
{%- elif messages[0].role != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
PICKY = """{%- if messages[-1].role == 'system' %}{{ raise_exception('a user message is missing') }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def texts(tokenizer: Any, row: Row) -> list[tuple[str, str]]:
    return [(kind.value, tokenizer.decode(row.tokens[a:b])) for kind, a, b in spans_of(row.kinds)]


def test_a_dialogue_is_one_row(tokenizer: Any, spans: Spans) -> None:
    first = turn(tokenizer, [SYSTEM, user("12+30?")], "42")
    second = turn(tokenizer, [SYSTEM, user("12+30?"), assistant("42"), user("sure?")], "yes")
    merged = merge([first, second], spans)
    (row,) = merged.rows
    assert merged.num_splits == 0
    assert row.tokens == [*second.prompt, *second.tokens]
    assert texts(tokenizer, row) == [
        ("system", "<|im_start|>system\nBe brief.<|im_end|>\n"),
        ("user", "<|im_start|>user\n12+30?<|im_end|>\n"),
        ("context", "<|im_start|>assistant\n"),
        ("assistant_text", "42<|im_end|>"),
        ("context", "\n"),
        ("user", "<|im_start|>user\nsure?<|im_end|>\n"),
        ("context", "<|im_start|>assistant\n"),
        ("final", "yes<|im_end|>"),
    ]
    sampled = [*first.logprobs, *second.logprobs]
    assert [p for p, is_sampled in zip(row.logprobs, row.is_sampled, strict=True) if is_sampled] == sampled
    assert [v for v in row.versions if v != UNSAMPLED] == row.sampled_versions == [7] * len(sampled)
    assert sum(row.is_sampled) == len(sampled)


def test_an_earlier_answer_that_was_rewritten_splits(tokenizer: Any, spans: Spans) -> None:
    first = turn(tokenizer, [user("12+30?")], "42")
    second = turn(tokenizer, [user("12+30?"), assistant("forty-two"), user("sure?")], "yes")
    third = turn(tokenizer, [*second.messages, assistant("yes"), user("really?")], "no")
    merged = merge([first, second, third], spans)
    assert merged.num_splits == 1
    assert [[kind for kind, _ in texts(tokenizer, row)] for row in merged.rows] == [
        ["user", "context", "assistant_text"],
        ["user", "context", "user", "context", "assistant_text", "context", "user", "context", "final"],
    ]
    for row in merged.rows:  # nothing is trained that was not sampled, and nothing twice
        mask = LossMaskPolicy().mask(row.kinds)
        assert [bool(weight) for weight in mask] == row.is_sampled
    assert sum(sum(row.is_sampled) for row in merged.rows) == sum(len(t.tokens) for t in (first, second, third))


def test_one_token_that_differs_splits(tokenizer: Any, spans: Spans) -> None:
    first = turn(tokenizer, [user("12+30?")], "42")
    second = turn(tokenizer, [user("12+30?"), assistant("42"), user("sure?")], "yes")
    other = [*first.tokens[:-1], 5]
    assert merge([replace(first, tokens=other), second], spans).num_splits == 1


def test_calls_and_results(tokenizer: Any, spans: Spans) -> None:
    call = '<tool_call>{"name": "add"}</tool_call>'
    reply = {"content": "First. ", "tool_calls": [{"id": "c", "function": {"name": "add", "arguments": "{}"}}]}
    first = turn(tokenizer, [user("12+30?")], f"First. {call} Then.", reply={"role": "assistant", **reply})
    assert [k for k, _, _ in spans_of(spans.answer_kinds(first))] == [SpanKind.ASSISTANT_TEXT, SpanKind.TOOL_CALL]
    around = replace(first, reply={"role": "assistant", **reply, "content": "First.  Then."})
    kinds = [(kind, tokenizer.decode(around.tokens[a:b])) for kind, a, b in spans_of(spans.answer_kinds(around))]
    assert kinds == [
        (SpanKind.ASSISTANT_TEXT, "First. "),
        (SpanKind.TOOL_CALL, call),
        (SpanKind.ASSISTANT_TEXT, " Then.<|im_end|>"),
    ]
    none = replace(first, reply={"role": "assistant", **reply, "content": None})
    assert set(spans.answer_kinds(none)) == {SpanKind.TOOL_CALL}
    assert merge([first], spans).rows[0].kinds[-1] == SpanKind.TOOL_CALL  # a call ends no dialogue


def test_what_a_template_puts_before(spans_with: Callable[[str], Spans]) -> None:
    spans = spans_with(PREAMBLE)
    tokenizer = spans._tokenizer
    for about, preamble in (({}, "Help."), ({"tools": [{"type": "function"}]}, "You have tools")):
        row = merge([turn(tokenizer, [user("a")], "b", **about)], spans).rows[0]
        assert texts(tokenizer, row)[:2] == [
            ("system", f"<|im_start|>system\n{preamble}<|im_end|>\n"),
            ("user", "<|im_start|>user\na<|im_end|>\n"),
        ]


def test_a_template_that_refuses_short_dialogues(spans_with: Callable[[str], Spans]) -> None:
    spans = spans_with(PICKY)
    row = merge([turn(spans._tokenizer, [SYSTEM, user("a")], "b")], spans).rows[0]
    assert [kind for kind, _ in texts(spans._tokenizer, row)] == ["user", "context", "final"]


def test_tokens_that_nobody_would_have_written(tokenizer: Any, spans: Spans) -> None:
    """Places in the text hold for tokens that are not the tokenizer's own choice, and over parts of characters."""
    plain = turn(tokenizer, [user("ü12+30? longer than a block of tokens, by some words or more than these")], "b")
    text = tokenizer.decode(plain.prompt)
    head = tokenizer.encode("<|im_start|>user\n", add_special_tokens=False)
    letters = [tokenizer.encode(letter, add_special_tokens=False) for letter in text[len("<|im_start|>user\n") :]]
    split = replace(plain, prompt=[*head, *(token for each in letters for token in each)])
    assert tokenizer.decode(split.prompt) == text
    assert split.prompt != plain.prompt
    row = merge([split], spans).rows[0]
    assert [kind for kind, _ in texts(tokenizer, row)] == ["user", "context", "final"]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_rows_hold_every_sampled_token_once_whatever_comes(tokenizer: Any, seed: int) -> None:
    """Turns of random tokens that go on with earlier ones or not: what a row has is what its turns saw and said."""
    draw = random.Random(seed)
    turns: list[Turn] = []
    for index in range(draw.randint(1, 7)):
        begin = draw.choice([[*t.prompt, *t.tokens] for t in turns]) if turns and draw.random() < 0.7 else []
        cut = begin[: draw.randint(0, len(begin))] if draw.random() < 0.3 else begin
        prompt = [*cut, *(draw.randint(1, 9) for _ in range(draw.randint(1, 4)))]
        tokens = [draw.randint(1, 9) for _ in range(draw.randint(1, 4))]
        logprobs = [-draw.random() for _ in tokens]
        turns.append(Turn(prompt, tokens, logprobs, [index] * len(tokens), request_id=str(draw.randint(0, 4))))
    merged = merge(turns, Spans(tokenizer))
    for row in merged.rows:
        sizes = {len(row.tokens), len(row.kinds), len(row.logprobs), len(row.versions), len(row.is_sampled)}
        assert sizes == {len(row.tokens)}
        for each in row.turns:
            end = len(each.prompt) + len(each.tokens)
            assert row.tokens[:end] == [*each.prompt, *each.tokens]
            assert row.logprobs[len(each.prompt) : end] == list(each.logprobs)
        assert [kind is not SpanKind.USER for kind in row.kinds] == row.is_sampled
    said = sorted(logprob for each in turns for logprob in each.logprobs)
    kept = sorted(p for row in merged.rows for p, s in zip(row.logprobs, row.is_sampled, strict=True) if s)
    assert kept == said


def test_turns_that_cannot_be() -> None:
    with pytest.raises(RolloutError, match="2 tokens, 1 log-probabilities, 2 versions"):
        Turn([1], [2, 3], [-1.0], [1, 1])


@given(st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_common_length(first: str, second: str) -> None:
    length = common_length(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]
