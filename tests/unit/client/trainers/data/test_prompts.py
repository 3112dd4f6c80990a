"""Prompts in batches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep.trainers.config import DataConfig, TrainerConfig
from farstep.trainers.data import Cursor, PromptBatch, load_prompt_batches, prompt_loader
from farstep.trainers.errors import DataError
from tests.unit.client.trainers.data.small_tokenizers import plain_tokenizer, small_tokenizer

CHAT, PLAIN = small_tokenizer("chatml"), plain_tokenizer(bos=False)


def rows(*lengths: int) -> list[dict[str, Any]]:
    return [{"prompt": "1" * length, "solutions": [i], "extra": {"i": i}} for i, length in enumerate(lengths)]


def batches(data: object, **settings: Any) -> list[PromptBatch]:
    return list(load_prompt_batches(data, PLAIN, **{"batch_size": 2, **settings}))


def test_records_stay_whole() -> None:
    (batch,) = batches(rows(1, 2))
    assert batch.prompts == ["1", "11"]
    assert [item.record for item in batch.items] == rows(1, 2)
    assert [item.solutions for item in batch.items] == [[0], [1]]
    assert [PLAIN.decode(list(item.tokens)) for item in batch.items] == ["1", "11"]


def test_long_prompts_are_skipped_and_counted() -> None:
    found = batches(rows(1, 9, 1, 9, 9, 1, 1, 9, 1), max_prompt_tokens=3)
    assert [[item.index for item in batch.items] for batch in found] == [[0, 2], [5, 6], [8]]
    assert [(b.scanned, b.skipped_long, b.total_skipped_long) for b in found] == [(5, 3, 3), (3, 1, 4), (1, 0, 4)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=20), batch_size=st.integers(1, 5), most=st.integers(0, 6)
)
def test_every_row_is_in_a_batch_or_counted(lengths: list[int], batch_size: int, most: int) -> None:
    if min(lengths) > most:
        with pytest.raises(DataError, match=f"all {len(lengths)} prompts are over {most} tokens"):
            batches(rows(*lengths), batch_size=batch_size, max_prompt_tokens=most)
        return
    found = batches(rows(*lengths), batch_size=batch_size, max_prompt_tokens=most)
    assert sum(batch.scanned for batch in found) == len(lengths)
    assert sum(len(batch) + batch.skipped_long for batch in found) == len(lengths)
    assert found[-1].total_skipped_long == sum(length > most for length in lengths)
    assert [item.index for batch in found for item in batch.items] == [i for i, n in enumerate(lengths) if n <= most]
    assert all(len(batch) == batch_size for batch in found[:-1])


def test_keys_may_be_others() -> None:
    data = [{"q": "1", "truth": 5, "prompt": 3}]
    (batch,) = batches(data, prompt_key="q", solutions_key="truth")
    assert (batch.prompts, batch.items[0].solutions) == (["1"], 5)
    (batch,) = batches([{"prompt": "1"}])
    assert batch.items[0].solutions is None


def test_other_forms_of_row_have_prompts_too() -> None:
    data = [
        {"input": "1", "output": "2"},
        {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}], "answer": "2"},
        {"prompt": "1", "input": "3", "answer": "2"},
    ]
    (batch,) = load_prompt_batches(data, CHAT, batch_size=3)
    asked = "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    assert [CHAT.decode(list(item.tokens)) for item in batch.items] == [asked] * 3
    assert [item.solutions for item in batch.items] == ["2"] * 3
    with pytest.raises(DataError, match="row 0: no 'question'"):
        list(load_prompt_batches(data, CHAT, batch_size=3, prompt_key="question"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"prompt": "1"}, {"question": "1", "a": 2}], r"row 1: no 'prompt' \(its keys are 'question', 'a'\)"),
        ([{"prompt": 3}], "row 0, prompt: int, not a list of messages"),
        ([], "dataset: there are no rows"),
        ({"prompt": "1"}, "dataset: dict, not a list of rows"),
    ],
)
def test_a_missing_prompt_is_told_with_row_and_keys(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        batches(data)


def test_prompts_are_put_into_the_chat_template() -> None:
    data = [{"prompt": "hi"}, {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]}]
    (batch,) = load_prompt_batches(data, CHAT, batch_size=4)
    texts = [CHAT.decode(list(item.tokens)) for item in batch.items]
    asked = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert texts == [asked, "<|im_start|>system\ns<|im_end|>\n" + asked]
    plain = DataConfig(apply_chat_template=False)
    (batch,) = load_prompt_batches(data[:1], CHAT, batch_size=4, config=plain)
    assert CHAT.decode(list(batch.items[0].tokens)) == "hi"


def configured(**settings: Any) -> TrainerConfig:
    return TrainerConfig(
        **{
            "type": "grpo",
            "model": "x",
            "dataset": {"rows": rows(1, 2, 9, 1, 2, 3, 9), "columns": {"question": "prompt"}},
            "batch_size": 2,
            "data": {"max_prompt_length": 3, "prompt_key": "question"},
            **settings,
        }
    )


def test_a_configuration_names_prompts_and_their_order_is_found_again() -> None:
    loader = prompt_loader(configured(), PLAIN)
    first = list(loader.batches())
    assert sorted(item.record["extra"]["i"] for batch in first for item in batch.items) == [0, 1, 3, 4, 5]
    assert first[-1].total_skipped_long == 2
    second = list(loader.batches(first[-1].cursor))
    assert first[-1].cursor == Cursor(1, 0, loader.data)
    assert [item.index for b in second for item in b.items] != [item.index for b in first for item in b.items]
    saved = Cursor.from_dict(first[0].cursor.to_dict())
    assert list(prompt_loader(configured(), PLAIN).batches(saved)) == first[1:]
    with pytest.raises(DataError, match="the cursor is of other data"):
        prompt_loader(configured(seed=1), PLAIN).batches(saved)


def test_rows_may_be_given_and_must_be_there() -> None:
    loader = prompt_loader(configured(data={"prompt_key": "prompt"}, dataset=[]), PLAIN, train_data=rows(1))
    assert len(loader) == 1
    with pytest.raises(DataError, match="there is nothing to train on"):
        prompt_loader(TrainerConfig(type="grpo", model="x"), PLAIN)
