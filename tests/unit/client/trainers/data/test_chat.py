"""Exact masks of conversations, for the templates of several families."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep.trainers.config import DataConfig
from farstep.trainers.data import NothingToTrain, RowAdapter
from farstep.trainers.errors import DataError
from farstep.trainers.sequence import TrainSequence
from tests.unit.client.trainers.data.small_tokenizers import small_tokenizer

Messages = list[dict[str, Any]]


def sequences(messages: Messages, family: str, row: Any = None, **config: Any) -> list[TrainSequence]:
    adapter = RowAdapter.get("messages")()
    return adapter.to_sequences({"messages": messages, **(row or {})}, small_tokenizer(family), DataConfig(**config))


def runs(sequence: TrainSequence, family: str) -> list[str]:
    """The text of each run of tokens that are learnt."""
    tokenizer = small_tokenizer(family)
    pairs = zip(sequence.tokens, sequence.loss_mask, strict=True)
    kept = [[token for token, _ in run] for learnt, run in groupby(pairs, key=lambda pair: pair[1] != 0) if learnt]
    return [tokenizer.decode(run) for run in kept]


def learnt(messages: Messages, family: str, **config: Any) -> list[str]:
    (sequence,) = sequences(messages, family, **config)
    return runs(sequence, family)


def said(*texts: str, system: str | None = None) -> Messages:
    """User and assistant by turns."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system else []) + turns


def by_hand(messages: Messages, family: str) -> list[tuple[str, bool]]:
    """What the template writes, put together by hand: (text, is it learnt)."""
    parts: list[tuple[str, bool]] = []
    match family:
        case "chatml":
            for m in messages:
                parts += [(f"<|im_start|>{m['role']}\n", False)]
                parts += [(m["content"] + "<|im_end|>", m["role"] == "assistant"), ("\n", False)]
        case "llama3":
            parts = [("<|begin_of_text|>", False)]
            for m in messages:
                parts += [(f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n", False)]
                parts += [(m["content"].strip() + "<|eot_id|>", m["role"] == "assistant")]
        case "gemma":
            parts = [("<bos>", False)]
            for m in messages:
                learnt = m["role"] == "assistant"
                parts += [(f"<start_of_turn>{'model' if learnt else 'user'}\n", False)]
                parts += [(m["content"].strip() + "<end_of_turn>", learnt), ("\n", False)]
        case "mistral":
            parts = [("<s>", False)]
            for m in messages:
                learnt = m["role"] == "assistant"
                parts += [((" " + m["content"] + "</s>") if learnt else f"[INST] {m['content']}[/INST]", learnt)]
    return parts


REAL = ["chatml", "llama3", "gemma", "mistral"]
WORDS = ["hello", " ", "\n", "user", "assistant", "no", "🦊", "é", "<", "think>", "a"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(turns=TURNS, family=st.sampled_from(REAL))
def test_masks_are_those_made_by_hand(turns: list[tuple[str, str]], family: str) -> None:
    messages = said(*(text for turn in turns for text in turn))
    (sequence,) = sequences(messages, family)
    tokenizer = small_tokenizer(family)
    parts = by_hand(messages, family)
    assert tokenizer.decode(sequence.tokens) == "".join(text for text, _ in parts)
    spans = [
        text
        for is_learnt, run in groupby(parts, key=lambda p: p[1])
        if is_learnt
        for text in ["".join(t for t, _ in run)]
    ]
    assert runs(sequence, family) == spans


@pytest.mark.parametrize("family", REAL)
def test_repeated_and_contained_text_is_told_apart(family: str) -> None:
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}[family]
    start = " " if family == "mistral" else ""
    messages = said("yes no yes", "yes", "yes", "yes no yes", "yes", "yes")
    assert learnt(messages, family) == [f"{start}yes{end}", f"{start}yes no yes{end}", f"{start}yes{end}"]


def test_the_last_turn_alone() -> None:
    messages = said("a", "b", "c", "d")
    assert learnt(messages, "chatml", train_on="last") == ["d<|im_end|>"]
    (sequence,) = sequences(messages, "chatml", train_on="last")
    assert "b<|im_end|>" in small_tokenizer("chatml").decode(sequence.tokens)


def test_all_tokens_where_inputs_are_not_masked() -> None:
    (sequence,) = sequences(said("a", "b"), "chatml", mask_inputs=False)
    assert sequence.loss_mask == [1.0] * len(sequence)
    assert sequence.num_targets == len(sequence) - 1
    (masked,) = sequences(said("a", "b"), "chatml")
    assert sequence.prompt_mask == masked.prompt_mask


def test_a_turn_may_be_given_no_weight() -> None:
    messages = said("a", "b", "c", "d")
    messages[1]["weight"] = 0
    assert learnt(messages, "chatml") == ["d<|im_end|>"]


def test_system_tools_and_calls() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    messages: Messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "3"},
    ]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    for given_tools in (tools, json.dumps(tools)):
        (sequence,) = sequences(messages, "chatml", {"tools": given_tools})
        assert runs(sequence, "chatml") == [text + text + "<|im_end|>", "3<|im_end|>"]
        whole = small_tokenizer("chatml").decode(sequence.tokens)
        assert "be brief" in whole
        assert '"name": "add", "parameters"' in whole
        assert whole.count("<tool_response>\n3") == 2


THOUGHT = "<think>\nhm\n</think>\n\nyes"


def test_a_template_that_changes_earlier_turns_is_refused_with_the_place() -> None:
    messages = said("a", THOUGHT, "b", THOUGHT)
    with pytest.raises(
        DataError, match=r"changes turn 1 \(assistant\).*at character \d+, 'yes<\|im_end\|>.*is not '<think>"
    ):
        sequences(messages, "chatml")
    assert learnt(messages, "chatml", train_on="last") == [f"{THOUGHT}<|im_end|>"]
    assert learnt(messages, "chatml", chat_template_kwargs={"keep_thoughts": True}) == [f"{THOUGHT}<|im_end|>"] * 2


def test_such_a_conversation_may_be_split_into_rows_as_they_were_sampled() -> None:
    messages = said("a", THOUGHT, "b", THOUGHT, "c", "no")
    split = sequences(messages, "chatml", on_rewritten_turns="split")
    texts = [small_tokenizer("chatml").decode(one.tokens) for one in split]
    assert [runs(one, "chatml") for one in split] == [
        [f"{THOUGHT}<|im_end|>"],
        [f"{THOUGHT}<|im_end|>"],
        ["no<|im_end|>"],
    ]
    assert [text.count("hm") for text in texts] == [1, 1, 0]
    assert [text.count("<|im_start|>") for text in texts] == [2, 4, 6]
    kept = sequences(said("a", "b", "c", "d"), "chatml", on_rewritten_turns="split")
    assert kept == sequences(said("a", "b", "c", "d"), "chatml")


@pytest.mark.parametrize("empty", ["<think>\n\n</think>\n\n", "<think></think>"])
def test_an_empty_thought_may_be_ignored(empty: str) -> None:
    messages = said("a", empty + "yes")
    assert learnt(messages, "chatml") == [f"{empty}yes<|im_end|>"]
    assert learnt(messages, "chatml", ignore_empty_think=True) == ["yes<|im_end|>"]
    full = said("a", THOUGHT)
    assert learnt(full, "chatml", ignore_empty_think=True) == [f"{THOUGHT}<|im_end|>"]
    later = said("a", "yes" + empty)
    assert learnt(later, "chatml", ignore_empty_think=True) == [f"yes{empty}<|im_end|>"]


@pytest.mark.parametrize("answer", ["yes", "<b>yes", "<think>\nhm\n</think>\nyes"])
def test_a_template_that_asks_in_other_words_than_it_records(answer: str) -> None:
    """The generation prompt ends with <think>: where the answer goes on with it, that was given, else nothing was."""
    expected = answer.removeprefix("<think>\n")
    assert learnt(said("a", answer), "thinking") == [f"{expected}<|im_end|>"]


def test_a_token_that_would_reach_over_a_turns_beginning_is_cut_there() -> None:
    """Line breaks merge: the header's last one and the answer's first would be one token."""
    tokenizer = small_tokenizer("chatml")
    assert len(tokenizer("\n\n", add_special_tokens=False)["input_ids"]) == 1
    (sequence,) = sequences(said("a", "\nyes"), "chatml")
    assert sequence.metadata["retokenized"]
    assert runs(sequence, "chatml") == ["\nyes<|im_end|>"]
    asked = tokenizer.apply_chat_template(said("a"), add_generation_prompt=True)["input_ids"]
    assert sequence.tokens[: len(asked)] == asked


def test_what_a_template_refuses_is_told() -> None:
    with pytest.raises(DataError, match=r"refuses it: System role not supported \(roles: system, user, assistant\)"):
        sequences(said("a", "b", system="c"), "gemma")
    with pytest.raises(DataError, match="refuses it: Roles must alternate"):
        sequences([*said("a", "b"), {"role": "assistant", "content": "c"}], "gemma")


def test_the_template_may_be_another() -> None:
    template = (
        "{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert learnt(said("a", "b"), "chatml", chat_template=template) == ["b<|im_end|>"]
    with pytest.raises(DataError, match="refuses it"):
        sequences(said("a", "b"), "chatml", chat_template="{{ messages.nothing.there }}")


def test_a_conversation_without_an_answer_has_nothing_to_learn() -> None:
    with pytest.raises(NothingToTrain):
        sequences(said("a"), "chatml")
    with pytest.raises(NothingToTrain):
        sequences([{"role": "assistant", "content": "a", "weight": 0}], "chatml")


def test_a_conversation_may_begin_with_the_assistant() -> None:
    assert learnt([{"role": "assistant", "content": "hello"}], "chatml") == ["hello<|im_end|>"]
    assert learnt([{"role": "assistant", "content": "hello"}], "llama3") == ["hello<|eot_id|>"]
    # Mistral looks at the first message and cannot ask for an answer to nothing: its space is taken for a header.
    assert learnt([{"role": "assistant", "content": "hello"}], "mistral") == ["hello</s>"]


class Slow:
    """A tokenizer that cannot say where its tokens are."""

    is_fast = False

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, text: str, **kwargs: Any) -> Any:
        assert not kwargs.get("return_offsets_mapping")
        return self.inner(text, **kwargs)


@pytest.mark.parametrize("family", REAL)
def test_a_tokenizer_that_cannot_say_where_its_tokens_are(family: str) -> None:
    row = {"messages": said("yes no yes", "yes", "yes", "yes no\n yes")}
    adapter = RowAdapter.get("messages")()
    (sequence,) = adapter.to_sequences(row, Slow(small_tokenizer(family)), DataConfig())  # type: ignore[arg-type]
    (expected,) = sequences(row["messages"], family)
    assert (sequence.tokens, sequence.loss_mask) == (expected.tokens, expected.loss_mask)


def test_tokens_that_do_not_spell_the_text_are_refused() -> None:
    class Forgetful(Slow):
        """Puts a space before whatever it tokenises, as some do: parts of a text have one each."""

        def __call__(self, text: str, **kwargs: Any) -> Any:
            return self.inner(" " + text, **kwargs)

    row = {"messages": said("a", "b")}
    with pytest.raises(DataError, match=r"cannot be cut into turns without changing its tokens: at character \d+"):
        RowAdapter.get("messages")().to_sequences(row, Forgetful(small_tokenizer("chatml")), DataConfig())  # type: ignore[arg-type]


def test_a_tokenizer_that_drops_text_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.Split("!", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known)
    row = {"prompt": "a!b", "response": "a"}
    with pytest.raises(DataError, match="the tokenizer has no token for '!', character 1"):
        RowAdapter.get("prompt_response")().to_sequences(row, tokenizer, DataConfig(apply_chat_template=False))
