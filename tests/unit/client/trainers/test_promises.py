"""The table in `docs/trainers.md`: every item of the lists has a row, and every test that a row names is there."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "trainers.md"
ITEMS = [f"{family}{number}" for family, most in (("O", 15), ("T", 21), ("R", 22)) for number in range(1, most + 1)]
ROW = re.compile(r"^\| ([^|]+?) \| (.+) \| ([^|]*) \|$")


def table():
    lines = PAGE.read_text().partition("## What it promises")[2].splitlines()
    return [found.groups() for line in lines if (found := ROW.match(line))]


def named(cell):
    """(file, test or ""); `::name` alone is of the file before it."""
    file = ""
    for reference in re.findall(r"`((?:tests/|::)[^`]+)`", cell):
        path, _, test = reference.partition("::")
        file = path or file
        yield file, test


@cache
def text_of(file):
    return (ROOT / file).read_text()


def test_every_item_has_one_row_that_says_how_and_names_a_test():
    rows = table()
    assert [ident for ident, _, _ in rows][: len(ITEMS)] == ITEMS
    for ident, how, tests in rows:
        assert len(how.strip()) > 3, ident
        assert list(named(tests)), ident


@pytest.mark.parametrize(("ident", "tests"), [(ident, tests) for ident, _, tests in table()])
def test_the_tests_that_a_row_names_are_there(ident, tests):
    for file, test in named(tests):
        assert (ROOT / file).is_file(), file
        assert f"def {test}(" in text_of(file) if test else "def test_" in text_of(file), f"{file}::{test}"


def test_it_would_tell_a_test_that_is_gone():
    assert list(named("`tests/a.py::one`, `::two`; `tests/b.py`")) == [
        ("tests/a.py", "one"), ("tests/a.py", "two"), ("tests/b.py", ""),
    ]  # fmt: skip
