"""The table of what versions of the SDK told, and its place on the page."""

from tests.sdk_matrix import table
from tests.sdk_matrix.programs import Report, Told


def told(sdk, *outcomes):
    features = ("one", "two")
    pairs = zip(features, outcomes, strict=True)
    return Told(sdk, tuple(Report("training", name, "0.30", outcome, 0.1) for name, outcome in pairs))


def test_a_row_a_feature_and_a_column_a_version():
    rows = table.table_of([told("2.0", "works", "fails"), told("1.0", "works", "absent")]).splitlines()
    assert rows[0] == "| | `tinker` 2.0 | `tinker` 1.0 |"
    assert rows[2:] == ["| **training** | | |", "| one | ★ | ★ |", "| two | ○ | – |"]


def test_it_replaces_the_one_before(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    for text in ("new", "newer"):
        table.put_into_page(text)
    assert page.read_text() == f"before\n{table.BEGIN}\n\nnewer\n\n{table.END}\nafter\n"
