"""Rows of files, functions, data sets."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from farstep.trainers.config import (
    CallableConfig,
    DataConfig,
    FileConfig,
    HuggingFaceConfig,
    RowsConfig,
    SourceConfig,
    TrainerConfig,
)
from farstep.trainers.data.collection import collected
from farstep.trainers.data.sources.base import Source
from farstep.trainers.errors import ConfigError, DataError, RegistryError

ROWS = [{"prompt": "a,b", "response": "c\nd"}, {"prompt": "é", "response": '"'}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = 'prompt,response\n"a,b","c\nd"\né,""""\n'


def read(config: SourceConfig) -> list[Any]:
    return [dict(row) for row in Source.get(config.type)(config).rows()]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", "\n" + LINES + "\n"),
        ("a.json", json.dumps(ROWS)),
        ("b.json", json.dumps({"about": "x", "data": ROWS})),
        ("a.csv", CSV),
        ("bom.csv", "\ufeff" + CSV),
        ("A.JSONL", LINES),
    ],
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read(FileConfig(path=str(path))) == ROWS
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert read(FileConfig(path=str(packed))) == ROWS


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "user", "content": "b"}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(FileConfig(path=str(tmp_path / "a.parquet"))) == rows
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(DataError, match=r"b\.parquet: no Parquet"):
        read(FileConfig(path=str(tmp_path / "b.parquet")))


def test_several_files_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("2", "1", "3"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    assert read(FileConfig(path=str(tmp_path / "*.jsonl"))) == [{"text": "1"}, {"text": "2"}, {"text": "3"}]
    with pytest.raises(DataError, match=r"no such file \(a folder: name its files"):
        read(FileConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl line 2: no JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl line 2: list, not an object"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', r"a\.json: no JSON: .*suffix: jsonl"),
        ("a.json", "[1]", r"a\.json row 0: int, not an object"),
        ("a.json", '{"a": [], "b": []}', r"an object with 2 lists"),
        ("a.json", "3", r"int, not a list of rows"),
        ("a.csv", "a,b\n1\n", r"a\.csv line 2: not 2 columns"),
        ("a.csv", "a,b\n1,2,3\n", r"a\.csv line 2: not 2 columns"),
        ("a.txt", "hello", r"what kind of file is it\? \(give suffix: jsonl"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(FileConfig(path=str(tmp_path / name)))


def test_what_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match="no UTF-8 text"):
        read(FileConfig(path=str(tmp_path / "a.jsonl")))
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(DataError, match=r"b\.jsonl: is broken"):
        read(FileConfig(path=str(tmp_path / "b.jsonl")))
    with pytest.raises(DataError, match="no such file"):
        read(FileConfig(path=str(tmp_path / "none.jsonl")))


def rows_of(num: int = 2) -> list[dict[str, str]]:
    return [{"text": str(i)} for i in range(num)]


def no_rows() -> str:
    return "no"


not_callable = 3


def test_functions() -> None:
    here = __name__
    assert read(CallableConfig(function=rows_of)) == [{"text": "0"}, {"text": "1"}]
    assert read(CallableConfig(function=f"{here}:rows_of", kwargs={"num": 3}))[2] == {"text": "2"}
    for function, message in [
        (f"{here}:nothing", "cannot load"),
        ("no.such.module:f", "cannot load"),
        (f"{here}:not_callable", "is int, and cannot be called"),
        (no_rows, "no_rows: gave str, not rows"),
    ]:
        with pytest.raises(DataError, match=message):
            read(CallableConfig(function=function))
    with pytest.raises(ValueError, match="must be module:function"):
        CallableConfig(function="nothing")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as `datasets` takes it, and no network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    folder = tmp_path / "set"
    folder.mkdir()
    for split, num in (("train", 10), ("test", 2)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": f"{split} {i}"}) + "\n" for i in range(num)))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_data_sets_of_the_hub_and_their_splits(hub: Path) -> None:
    assert read(HuggingFaceConfig(name=str(hub), split="test")) == [{"text": "test 0"}, {"text": "test 1"}]
    (hub / "rows.txt").write_text("{}")
    with pytest.raises(DataError, match=r"rows\.txt: a file, and .*suffix: jsonl"):  # and no hub is asked
        read(HuggingFaceConfig(name=str(hub / "rows.txt")))
    (hub / "rows.txt").unlink()
    with pytest.raises(DataError, match=r"no split 'valid' \(there are: train, test\)"):
        read(HuggingFaceConfig(name=str(hub), split="valid"))
    config = DataConfig(
        sources={"type": "huggingface", "name": str(hub), "slice": ["10%", "30%"]}, mixing="concatenate"
    )
    rows, _ = collected(config, seed=1)
    assert rows is not None
    assert [row.row["text"] for row in rows] == ["train 1", "train 2"]


@pytest.mark.filterwarnings("ignore")
def test_data_sets_that_were_saved(hub: Path, tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_list(rows_of())
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one}).save_to_disk(str(tmp_path / "several"))
    assert read(HuggingFaceConfig(name=str(tmp_path / "one"))) == rows_of()
    assert read(HuggingFaceConfig(name=str(tmp_path / "several"))) == rows_of()
    with pytest.raises(DataError, match=r"no split 'test' \(there are: train\)"):
        read(HuggingFaceConfig(name=str(tmp_path / "several"), split="test"))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("org/x", HuggingFaceConfig(name="org/x")),
        ("org/x:test", HuggingFaceConfig(name="org/x", split="test")),
        ("org/x:test[:100]", HuggingFaceConfig(name="org/x", split="test", slice=(None, 100))),
        ("org/x[10%:1k]", HuggingFaceConfig(name="org/x", slice=("10%", 1000))),
        ("./a.jsonl[-5:]", FileConfig(path="./a.jsonl", slice=(-5, None))),
        ("data/a.parquet", FileConfig(path="data/a.parquet")),
        ("file:///a/b.csv", FileConfig(path="/a/b.csv")),
        ([{"text": "a"}], RowsConfig(rows=[{"text": "a"}])),
        (rows_of, CallableConfig(function=rows_of)),
        ({"path": "a.jsonl"}, FileConfig(path="a.jsonl")),
        ({"type": "huggingface_instruct", "nameOrPath": "org/x"}, HuggingFaceConfig(name="org/x")),
    ],
)
def test_short_forms(short: object, long: SourceConfig) -> None:
    assert DataConfig(sources=short).sources == (long,)
    assert DataConfig(sources=[short]).sources == (long,)


def test_a_source_of_the_users_own() -> None:
    class CountConfig(SourceConfig):
        type: str = "count_for_this_test"
        to: int

    class Count(Source):
        name = "count_for_this_test"
        config_class = CountConfig

        def rows(self) -> list[dict[str, str]]:
            return [{"text": str(i)} for i in range(self.config.to)]

        def fingerprint(self) -> str:
            return ""

    config = DataConfig(sources=[{"type": "count_for_this_test", "to": 3, "sample_count": 2}])
    rows, _ = collected(config, seed=1)
    assert rows is not None
    assert len(rows) == 2
    with pytest.raises(ConfigError, match=r"dataset.*\[0\]\.too: unknown setting.*\(did you mean 'to'"):
        TrainerConfig(model="x", dataset={"type": "count_for_this_test", "too": 3})
    with pytest.raises(RegistryError, match="there is no source 'nothing'"):
        Source.get("nothing")


def mixture(**config: Any) -> list[tuple[int, int]]:
    sources = [
        {"function": rows_of, "kwargs": {"num": 10}},
        {"function": rows_of, "kwargs": {"num": 20}, "sample_ratio": "50%"},
    ]
    rows, _ = collected(DataConfig(sources=sources, **config), seed=5)
    assert rows is not None
    return [(row.source_index, row.row_index) for row in rows]


def test_mixtures_are_reproducible() -> None:
    assert len(mixture()) == 20
    assert mixture() == mixture()
    assert sorted(mixture()) == sorted(mixture(mixing="concatenate"))
    assert mixture() != mixture(mixing="concatenate")
    assert mixture(max_rows=4) == mixture()[:4]


def test_a_source_without_rows_is_told() -> None:
    with pytest.raises(DataError, match=r"data\.sources\[0\]: gives no rows \(2 there, 0 in its slice\)"):
        collected(DataConfig(sources={"function": rows_of, "slice": [5, None]}), seed=1)
    with pytest.raises(DataError, match=r"data\.sources\[0\]\.sample_count: 5 of 2 rows"):
        collected(DataConfig(sources={"function": rows_of, "sample_count": 5}), seed=1)


def test_what_is_held_out_is_not_trained_on() -> None:
    config = DataConfig(sources={"function": rows_of, "kwargs": {"num": 40}, "sample_ratio": 2}, train_eval_split=0.25)
    train, held_out = collected(config, seed=3)
    assert train is not None
    assert held_out is not None
    assert (len(train), len(held_out)) == (60, 20)
    assert not {row.row["text"] for row in train} & {row.row["text"] for row in held_out}


def test_what_is_not_needed_is_not_loaded() -> None:
    code = (
        "import sys, farstep.trainers.data, farstep.trainers.config\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'httpx', 'jinja2'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
