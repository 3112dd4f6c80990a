"""Rows of each form as tokens."""

from __future__ import annotations

from typing import Any

import pytest

from farstep.trainers.config import DataConfig
from farstep.trainers.data import DataReport, Limits, NothingToTrain, RowAdapter, adapter_for, check_rows
from farstep.trainers.errors import DataError, RegistryError
from farstep.trainers.sequence import TrainSequence
from tests.unit.client.trainers.data.small_tokenizers import plain_tokenizer, small_tokenizer

CHAT, PLAIN = small_tokenizer("chatml"), plain_tokenizer()


def made(row: dict[str, Any], tokenizer: Any = CHAT, **config: Any) -> list[TrainSequence]:
    return adapter_for(row).to_sequences(row, tokenizer, DataConfig(**config))


def shown(sequence: TrainSequence, tokenizer: Any = CHAT) -> tuple[str, str]:
    """The whole text, and what of it is learnt."""
    learnt = [token for token, weight in zip(sequence.tokens, sequence.loss_mask, strict=True) if weight]
    return tokenizer.decode(sequence.tokens), tokenizer.decode(learnt)


USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
ASKED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"chosen": "a", "rejected": "b", "messages": []}, "preference"),
        ({"messages": [], "prompt": "x", "text": ""}, "messages"),
        ({"conversations": []}, "messages"),
        ({"prompt": "a", "response": "b", "text": ""}, "prompt_response"),
        ({"prompt": "a", "completion": "b"}, "prompt_response"),
        ({"instruction": "a", "input": "b", "output": "c"}, "instruction"),
        ({"input": "b", "output": "c"}, "input_output"),
        ({"text": "a"}, "text"),
        ({"prompt": "a", "answer": "b"}, "prompt"),
        ({"prompt": "a", "solutions": ["b"]}, "prompt"),
        ({"input": "a"}, "input"),
    ],
)
def test_the_form_is_told_by_the_keys(row: dict[str, Any], name: str) -> None:
    assert adapter_for(row).name == name


def test_unknown_forms_are_told_with_the_keys() -> None:
    with pytest.raises(DataError, match=r"no known form of row; its keys are 'question', 'reply' \(known are messages"):
        adapter_for({"question": "a", "reply": "b"})
    with pytest.raises(RegistryError, match=r"there is no row adapter 'mesages'.*did you mean 'messages'"):
        adapter_for({}, "mesages")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "response": "yes"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": [USER], "response": ASSISTANT},
        {"input": "hi", "output": "yes"},
        {"instruction": "hi", "input": "", "output": "yes"},
        {"messages": [USER, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
    ],
)
def test_questions_and_answers_in_the_chat_template(row: dict[str, Any]) -> None:
    (sequence,) = made(row)
    assert shown(sequence) == (f"{ASKED}yes<|im_end|>\n", "yes<|im_end|>")
    assert CHAT.decode(adapter_for(row).to_prompt(row, CHAT, DataConfig())) == ASKED


def test_questions_and_answers_as_they_are() -> None:
    row = {"prompt": "hello wo", "response": "rld"}
    (sequence,) = made(row, PLAIN)
    assert shown(sequence, PLAIN) == ("<s>hello world</s>", "rld</s>")
    assert sequence.metadata["retokenized"]
    assert shown(made(row, apply_chat_template=False)[0]) == ("hello world<|im_end|>", "rld<|im_end|>")
    assert shown(made(row, PLAIN, add_bos=False, add_eos=False)[0], PLAIN) == ("hello world", "rld")
    assert PLAIN.decode(adapter_for(row).to_prompt(row, PLAIN, DataConfig())) == "<s>hello wo"
    with pytest.raises(DataError, match=r"no chat template \(give data\.chat_template\)"):
        made({"messages": [USER, ASSISTANT]}, PLAIN)


def test_a_system_prompt_and_earlier_answers_are_not_learnt() -> None:
    row = {"system": "be brief", "prompt": [USER, ASSISTANT, USER], "response": "no"}
    whole, learnt = shown(made(row)[0])
    assert whole.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user")
    assert learnt == "no<|im_end|>"


def test_instructions_have_their_input_below() -> None:
    row = {"instruction": "add", "input": "1 2", "output": "3"}
    assert "user\nadd\n\n1 2<|im_end|>" in shown(made(row)[0])[0]


def test_texts_are_learnt_whole() -> None:
    (sequence,) = made({"text": "hello world"}, PLAIN)
    assert shown(sequence, PLAIN) == ("<s>hello world</s>", "<s>hello world</s>")
    assert sequence.num_targets == len(sequence) - 1
    assert shown(made({"text": "hello"}, plain_tokenizer(bos=False))[0], plain_tokenizer(bos=False))[0] == "hello</s>"
    with pytest.raises(NothingToTrain):
        made({"text": ""}, PLAIN)


def rows_of_text(length: int, *texts: str, **config: Any) -> tuple[list[list[int]], DataReport]:
    report, settings = DataReport(), DataConfig(**config)
    adapter = adapter_for({"text": ""})
    made = [one for text in texts for one in adapter.to_sequences({"text": text}, PLAIN, settings)]
    return [one.tokens for one in adapter.fitted(made, Limits(length), settings, report)], report


def test_what_is_over_the_length_begins_the_next_row() -> None:
    tokens = [PLAIN.bos_token_id, *PLAIN("a b c d", add_special_tokens=False)["input_ids"], PLAIN.eos_token_id]
    rows, report = rows_of_text(3, "a b c d")
    assert [token for row in rows for token in row] == tokens
    assert [len(row) for row in rows] == [3, 3, 3]
    assert (report.carried, report.truncated) == (len(rows) - 1, 0)
    rows, report = rows_of_text(4, "a b c d", carry_overflow=False)
    assert rows == [tokens[:4]]
    assert (report.truncated, report.tokens_cut) == (1, len(tokens) - 4)


def test_a_rest_that_is_too_short_is_left_out_and_counted() -> None:
    length = len(rows_of_text(999, "a b c d")[0][0])
    rows, report = rows_of_text(length - 1, "a b c d")
    assert [len(row) for row in rows] == [length - 1]
    assert report.tokens_cut == 1
    rows, report = rows_of_text(length - 3, "a b c d", min_carry_length=4)
    assert report.tokens_cut == 3


PAIR = {"prompt": "hi", "chosen": "yes", "rejected": "no"}


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "no"}]},
        {"prompt": [USER], "chosen": ASSISTANT, "rejected": "no"},
        {"prompt": "hi", "chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "no"}]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "no"}]},
    ],
)
def test_pairs(row: dict[str, Any]) -> None:
    chosen, rejected = made(row)
    assert shown(chosen) == (f"{ASKED}yes<|im_end|>\n", "yes<|im_end|>")
    assert shown(rejected) == (f"{ASKED}no<|im_end|>\n", "no<|im_end|>")


def test_pairs_without_a_template() -> None:
    chosen, rejected = made(PAIR, PLAIN)
    assert shown(chosen, PLAIN) == ("<s>hiyes</s>", "yes</s>")
    assert shown(rejected, PLAIN) == ("<s>hino</s>", "no</s>")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "rejected: chosen and rejected are the same"),
        ({"chosen": [USER], "rejected": [ASSISTANT]}, "prompt: no prompt: chosen and rejected have no beginning"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt: int, not a list of messages"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen: int, not a list of messages"),
    ],
)
def test_what_is_no_pair_is_told(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        RowAdapter.get("preference")().check(row)


def fitted_pair(**config: Any) -> tuple[list[str], DataReport]:
    settings, report = DataConfig(**config), DataReport()
    adapter = adapter_for(PAIR)
    row = {"prompt": "a b c d e f", "chosen": "yes", "rejected": "no no no no"}
    limits = Limits(settings.max_length, settings.max_prompt_length)
    kept = adapter.fitted(adapter.to_sequences(row, PLAIN, settings), limits, settings, report)
    return [shown(sequence, PLAIN)[0] for sequence in kept], report


def test_prompts_of_pairs_are_cut_at_either_end() -> None:
    assert fitted_pair()[0] == ["<s>a b c d e fyes</s>", "<s>a b c d e fno no no no</s>"]
    texts, report = fitted_pair(max_prompt_length=5)
    assert texts == ["d e fyes</s>", "d e fno no no no</s>"]
    assert report.prompts_cut == 2
    assert fitted_pair(max_prompt_length=4, prompt_truncation="keep_start")[0] == [
        "<s>a byes</s>",
        "<s>a bno no no no</s>",
    ]


def test_a_pair_is_dropped_as_a_whole() -> None:
    texts, report = fitted_pair(max_length=15)
    assert texts == ["<s>a b c d e fyes</s>", "<s>a b c d e fno no no"]
    assert report.truncated == 1
    texts, report = fitted_pair(max_length=12)
    assert texts == []
    assert report.dropped_no_targets == 1
    texts, report = fitted_pair(max_length=15, on_too_long="drop")
    assert (texts, report.dropped_too_long) == ([], 1)
    with pytest.raises(DataError, match=r"\d+ tokens, and at most 15 are allowed"):
        fitted_pair(max_length=15, on_too_long="error")


def test_prompts_alone_have_nothing_to_learn() -> None:
    with pytest.raises(
        DataError, match=r"rows of the form 'prompt' have a prompt alone.*its keys are 'prompt', 'answer'"
    ):
        made({"prompt": "a", "answer": "b"})


def test_an_adapter_of_the_users_own() -> None:
    class Qa(RowAdapter):
        name = "qa_for_this_test"
        keys = ("q", ("a", "b"))

        def to_sequences(self, row: Any, tokenizer: Any, config: DataConfig) -> list[TrainSequence]:
            return [TrainSequence.from_prompt_completion([1, 2], [3])]

    row = {"q": "x", "b": "y"}
    adapter = adapter_for(row, "qa_for_this_test")
    adapter.check(row)
    assert adapter.to_sequences(row, CHAT, DataConfig())[0].tokens == [1, 2, 3]
    with pytest.raises(DataError, match=r"no 'a' or 'b' \(its keys are 'q'\)"):
        adapter.check({"q": "x"})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "train_data: there are no rows"),
        ("rows", "train_data: str, not a list of rows"),
        ({"text": "a"}, "train_data: dict, not a list of rows"),
        (iter([{"text": "a"}]), "not a list of rows"),
        ([{"text": "a"}, 3], "row 1: int, not a mapping"),
        ([{"text": "a"}, {"txt": "b"}], "row 1: no known form of row; its keys are 'txt'"),
        ([{"text": "a"}, {"text": 3}], "row 1, text: int, not text"),
        (
            [{"messages": [USER]}, {"messages": [{"role": "x", "content": ""}]}],
            r"row 1, messages\[0\]: unknown role 'x'",
        ),
        ([{"prompt": "a", "response": 3}], "row 0, response: int, not a list of messages"),
    ],
)
def test_rows_are_checked_before_anything_is_paid_for(rows: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_rows(rows)
