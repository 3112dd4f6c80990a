"""From a configuration to data sets, by way of the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farstep.trainers.config import TrainerConfig
from farstep.trainers.data import DataReport, Dataset, Datasets, RowAdapter, load, process_data
from farstep.trainers.errors import DataError
from farstep.trainers.sequence import TrainSequence
from tests.unit.client.trainers.data.small_tokenizers import plain_tokenizer, small_tokenizer

CHAT = small_tokenizer("chatml")


def chat(index: int, words: int = 1) -> dict[str, Any]:
    answer = " ".join(["yes"] * words)
    return {"messages": [{"role": "user", "content": str(index)}, {"role": "assistant", "content": answer}]}


def config(rows: Any = None, **settings: Any) -> TrainerConfig:
    given = [chat(i) for i in range(20)] if rows is None else rows
    data = {"sources": [{"rows": given}], **settings.pop("data", {})}
    return TrainerConfig(**{"name": "a", "model": "x", "data": data, **settings})


def all_tokens(dataset: Dataset) -> list[list[int]]:
    return [sequence.tokens for group in dataset for sequence in group]


def test_rows_become_groups_with_a_report() -> None:
    sets = load(config(), CHAT)
    assert len(sets.train) == 20
    assert sets.eval is None
    (sequence,) = sets.train[0]
    assert CHAT.decode([t for t, w in zip(sequence.tokens, sequence.loss_mask, strict=True) if w]) == "yes<|im_end|>"
    report = sets.train.report
    assert (report.rows, report.used, report.sequences) == (20, 20, 20)
    assert report.tokens == sum(len(one) for group in sets.train for one in group)
    assert report.targets == sum(one.num_targets for group in sets.train for one in group)
    assert str(report).startswith("rows 20, used 20")
    with pytest.raises(IndexError):
        sets.train[20]


def test_every_row_is_counted_once_whatever_becomes_of_it() -> None:
    rows = [chat(0), chat(1, 40), {"messages": [{"role": "user", "content": "x" * 200}, chat(0)["messages"][1]]}]
    rows.append({"messages": [{"role": "user", "content": "a"}]})
    report = load(config(rows, data={"max_length": 40}), CHAT).train.report
    assert (report.rows, report.used, report.truncated, report.dropped_no_targets) == (4, 2, 2, 2)
    assert report.longest == 40
    report = load(config(rows, data={"max_length": 40, "on_too_long": "drop"}), CHAT).train.report
    assert (report.used, report.dropped_too_long, report.dropped_no_targets) == (1, 2, 1)
    assert report.rows == report.used + report.dropped_too_long + report.dropped_no_targets
    with pytest.raises(DataError, match=r"row [12] of source 0: \d+ tokens, and at most 40 are allowed"):
        load(config(rows, data={"max_length": 40, "on_too_long": "error"}), CHAT)


def test_the_lowest_limit_holds() -> None:
    rows = [chat(0, 60)]
    for settings, given, length in [
        ({"data": {"max_length": 30}}, None, 30),
        ({"lora": {"maxLength": 25}, "data": {"max_length": 30}}, 99, 25),
        ({}, 22, 22),
    ]:
        assert len(load(config(rows, **settings), CHAT, max_length=given).train[0][0]) == length


def test_nothing_left_is_an_error_that_says_what_became_of_the_rows() -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}]}] * 3
    with pytest.raises(DataError, match=r"no row is left: rows 3, used 0, .*dropped no targets 3"):
        load(config(rows), CHAT)
    with pytest.raises(DataError, match="there is nothing to train on"):
        load(TrainerConfig(model="x"), CHAT)


def test_a_bad_row_is_told_with_its_place() -> None:
    rows = [chat(0), {"prompt": "a", "answer": "b"}]
    with pytest.raises(DataError, match=r"row 1 of source 0: rows of the form 'prompt' have a prompt alone"):
        load(config(rows, data={"mixing": "concatenate"}), CHAT)
    with pytest.raises(DataError, match=r"row 0: a pair of chosen and rejected, and this trainer takes single rows"):
        load(config(), CHAT, train_data=[{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(DataError, match=r"row 0: a row of the form 'messages', and this trainer takes chosen and"):
        load(config(type="dpo"), CHAT, train_data=[chat(0)])


def test_pairs_are_groups_of_two() -> None:
    pairs = [{"prompt": str(i), "chosen": "yes", "rejected": "no"} for i in range(3)]
    sets = load(config(pairs, type="dpo", data={"mixing": "concatenate"}), CHAT)
    assert len(sets.train) == 3
    chosen, rejected = sets.train[1]
    assert "yes" in CHAT.decode(chosen.tokens)
    assert "no" in CHAT.decode(rejected.tokens)
    assert (chosen.metadata, rejected.metadata) == ({"source": 0, "row": 1},) * 2


def test_sources_may_be_read_each_in_its_own_way() -> None:
    sources = [
        {"rows": [{"q": "1", "a": "yes"}], "role_mapping": {"user": "q", "assistant": "a"}},
        {"rows": [{"body": "no"}], "columns": {"text": "body"}, "format": "text"},
    ]
    made = load(TrainerConfig(model="x", data={"sources": sources, "mixing": "concatenate"}), CHAT).train
    assert [CHAT.decode(tokens) for tokens in all_tokens(made)] == [
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n",
        "no<|im_end|>",
    ]
    bad = {"rows": [{"q": "1"}], "role_mapping": {"user": "q", "assistant": "a"}}
    with pytest.raises(
        DataError, match=r"row 0 of source 0, role_mapping\.assistant: no 'a' \(a\) \(its keys are 'q'\)"
    ):
        load(TrainerConfig(model="x", dataset=bad), CHAT)


def test_what_is_evaluated_on_is_not_trained_on() -> None:
    sets = load(config(data={"train_eval_split": 0.2}, eval_interval=1), CHAT)
    assert sets.eval is not None
    train, held_out = all_tokens(sets.train), all_tokens(sets.eval)
    assert (len(train), len(held_out)) == (16, 4)
    assert not {tuple(tokens) for tokens in train} & {tuple(tokens) for tokens in held_out}
    own = load(config(data={"eval_sources": [{"rows": [chat(99)]}]}, eval_interval=1), CHAT)
    assert own.eval is not None
    assert (len(own.train), len(own.eval)) == (20, 1)


def test_rows_and_data_sets_may_be_given() -> None:
    sets = load(config(), CHAT, train_data=[chat(0)], test_data=[chat(1)])
    assert sets.eval is not None
    assert (len(sets.train), len(sets.eval)) == (1, 1)
    made = Dataset.of([[TrainSequence([1, 2], [0.0, 1.0])]])
    assert load(config(), CHAT, train_data=made).train is made
    with pytest.raises(DataError, match="groups of 1 sequences, and this trainer takes 2"):
        load(config(type="dpo"), CHAT, train_data=made)
    with pytest.raises(DataError, match="train_data: there are no rows"):
        load(config(), CHAT, train_data=[])
    with pytest.raises(DataError, match="all must have the same number"):
        Dataset.of([[made[0][0]], [made[0][0], made[0][0]]])


def test_weights_survive() -> None:
    sequence = TrainSequence([1, 2, 3], [0.0, -0.5, 2.0], [1, 0, 0])
    (back,) = Dataset.of([[sequence]])[0]
    assert (back.tokens, back.loss_mask, back.prompt_mask) == ([1, 2, 3], [0.0, -0.5, 2.0], [1, 0, 0])


def test_texts_may_be_joined() -> None:
    tokenizer = plain_tokenizer()
    rows = [{"text": text} for text in ("a b c", "d", "e f g h i j k l m")]
    data = {"mixing": "concatenate", "max_length": 8, "join_texts": True}
    made = load(config(rows, type="causal", data=data), tokenizer).train
    whole = [token for tokens in all_tokens(made) for token in tokens]
    separate = load(config(rows, type="causal", data={"mixing": "concatenate"}), tokenizer).train
    assert whole == [token for tokens in all_tokens(separate) for token in tokens]
    assert {len(tokens) for tokens in all_tokens(made)[:-1]} == {8}


def test_joining_needs_a_length() -> None:
    with pytest.raises(DataError, match=r"data\.max_length: to join texts"):
        load(config([{"text": "a"}], data={"join_texts": True}), plain_tokenizer())


def test_processes_make_the_same(tmp_path: Path) -> None:
    rows = [chat(i, i % 7) for i in range(600)]
    shown: list[tuple[int, int]] = []
    alone = load(config(rows), CHAT, progress=lambda done, total: shown.append((done, total))).train
    together = load(config(data={"num_proc": 2, "sources": [{"function": lambda: rows}]}), CHAT).train
    assert together.fingerprint == alone.fingerprint
    assert together.report == alone.report
    assert shown == [(256, 600), (512, 600), (600, 600)]


def test_an_adapter_that_no_other_process_can_load_is_used_in_this_one() -> None:
    class Local(RowAdapter, replace=True):
        name = "local_for_this_test"

        def to_sequences(self, row: Any, tokenizer: Any, config: Any) -> list[TrainSequence]:
            return [TrainSequence([1, 2], [0, 1])]

    rows = [chat(i) for i in range(300)]
    with pytest.warns(RuntimeWarning, match="num_proc is left aside: the row adapter 'local_for_this_test'"):
        made = load(config(rows, data={"num_proc": 2, "format": "local_for_this_test"}), CHAT).train
    assert len(made) == 300


# The cache -----------------------------------------------------------------------------------------------------


def cached(
    folder: Path, tokenizer: Any = CHAT, rows: Any = None, max_length: int | None = None, **data: Any
) -> Datasets:
    return load(config(rows, data={"cache_dir": str(folder), **data}), tokenizer, max_length=max_length)


def test_the_second_run_finds_what_the_first_has_made(tmp_path: Path) -> None:
    first = cached(tmp_path).train
    second = cached(tmp_path).train
    assert (first.from_cache, second.from_cache) == (False, True)
    assert all_tokens(second) == all_tokens(first)
    assert second.fingerprint == first.fingerprint
    assert second.report == first.report
    assert isinstance(second.table.tokens, np.memmap)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 30},
        {"mask_inputs": False},
        {"train_on": "last"},
        {"mixing": "concatenate"},
        {"max_rows": 3},
        {"ignore_empty_think": True},
        {"chat_template_kwargs": {"keep_thoughts": True}},
        {"sources": [{"rows": [chat(1)]}]},
        {"seed": 7},
        {"add_eos": False},
    ],
)
def test_whatever_decides_a_token_is_part_of_the_key(tmp_path: Path, change: dict[str, Any]) -> None:
    cached(tmp_path)
    assert not cached(tmp_path, **change).train.from_cache


@pytest.mark.parametrize("change", [{"drop_last": True}, {"shuffle": False}, {"num_proc": 2}, {"prompt_key": "x"}])
def test_what_decides_none_is_not(tmp_path: Path, change: dict[str, Any]) -> None:
    cached(tmp_path)
    assert cached(tmp_path, **change).train.from_cache


def test_tokenizer_limits_and_files_are_part_of_the_key(tmp_path: Path) -> None:
    cached(tmp_path)
    assert not cached(tmp_path, small_tokenizer("llama3")).train.from_cache
    assert not cached(tmp_path, max_length=30).train.from_cache
    path = tmp_path / "a.jsonl"
    source = {"sources": [{"path": str(path)}]}
    path.write_text(json.dumps(chat(0)))
    assert not cached(tmp_path, **source).train.from_cache
    assert cached(tmp_path, **source).train.from_cache
    path.write_text(json.dumps(chat(1)))
    assert not cached(tmp_path, **source).train.from_cache


def test_given_rows_are_cached_by_what_they_are(tmp_path: Path) -> None:
    def given(index: int) -> Dataset:
        settings = config(data={"cache_dir": str(tmp_path)})
        return load(settings, CHAT, train_data=[chat(index)]).train

    assert not given(0).from_cache
    assert given(0).from_cache
    assert not given(1).from_cache


def test_a_missing_cache_may_be_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not in the cache: in .*run process-data"):
        cached(tmp_path, fail_on_missing_cache=True)
    settings = config(data={"cache_dir": str(tmp_path), "fail_on_missing_cache": True})
    assert not process_data(settings, CHAT).train.from_cache
    assert load(settings, CHAT).train.from_cache
    with pytest.raises(DataError, match=r"data\.cache_dir is not set"):
        load(config(data={"fail_on_missing_cache": True}), CHAT)
    with pytest.raises(DataError, match=r"data\.cache_dir: where is the processed data to go"):
        process_data(config(), CHAT)


def test_a_token_is_no_part_of_the_cache(tmp_path: Path) -> None:
    from farstep.trainers.config import BlobConfig
    from farstep.trainers.data.cache import source_key

    with_token = source_key(BlobConfig(url="https://example.com/a.jsonl", token="s3cret"))
    assert "s3cret" not in json.dumps(with_token)
    assert with_token == source_key(BlobConfig(url="https://example.com/a.jsonl", token_env="OTHER"))
    assert with_token != source_key(BlobConfig(url="https://example.com/a.jsonl", version="2"))


def test_a_broken_cache_is_made_anew(tmp_path: Path) -> None:
    first = cached(tmp_path).train
    (folder,) = tmp_path.iterdir()
    tokens = folder / "tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-40])
    with pytest.warns(RuntimeWarning, match="is broken and is made anew"):
        again = cached(tmp_path).train
    assert not again.from_cache
    assert all_tokens(again) == all_tokens(first)
    assert cached(tmp_path).train.from_cache


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir: cannot write .*file"):
        cached(tmp_path / "file")


def test_an_adapter_of_the_users_own_is_part_of_the_key(tmp_path: Path) -> None:
    class Own(RowAdapter, replace=True):
        name = "own_for_this_test"

        def to_sequences(self, row: Any, tokenizer: Any, config: Any) -> list[TrainSequence]:
            return [TrainSequence([1, 2], [0, 1])]

    assert all_tokens(cached(tmp_path, format="own_for_this_test").train) == [[1, 2]] * 20
    assert cached(tmp_path, format="own_for_this_test").train.from_cache

    class Other(RowAdapter, replace=True):
        name = "own_for_this_test"

        def to_sequences(self, row: Any, tokenizer: Any, config: Any) -> list[TrainSequence]:
            return [TrainSequence([1, 3], [0, 1])]

    assert all_tokens(cached(tmp_path, format="own_for_this_test").train) == [[1, 3]] * 20


def test_reports_add_up() -> None:
    total = DataReport(rows=1, longest=3)
    total.add(DataReport(rows=2, longest=2, truncated=1))
    assert total == DataReport(rows=3, longest=3, truncated=1)


def test_rows_that_were_given_are_parted_as_a_source_is() -> None:
    rows = [{"text": f"row {index}"} for index in range(10)]
    split = config(rows, data={"train_eval_split": 0.3}, eval_interval=1)
    given = load(split, CHAT, train_data=rows)
    assert given.eval is not None
    train, held_out = all_tokens(given.train), all_tokens(given.eval)
    assert (len(train), len(held_out)) == (7, 3)
    assert sorted(train + held_out) == sorted(all_tokens(load(config(rows), CHAT).train))
    again = load(split, CHAT, train_data=rows)
    assert (all_tokens(again.train), again.eval and all_tokens(again.eval)) == (train, held_out)
    with_test_data = load(split, CHAT, train_data=rows, test_data=rows[:2])
    assert (len(with_test_data.train), len(with_test_data.eval or ())) == (10, 2)
