"""What people and programs see: tables that fit, times and sizes in words, nothing that a terminal would obey."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from farstep.cli.output import Column, ago, duration, print_details, print_error, print_json, print_table, size

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ROWS = [("run-0123456789abcdef", "ready", "a name", "farstep/tiny"), ("run-1", "failed", "", "Qwen/Qwen3-0.6B")]
COLUMNS = (
    Column("run", lambda row: row[0]),
    Column("state", lambda row: row[1]),
    Column("name", lambda row: row[2], drop=2),
    Column("base model", lambda row: row[3], drop=1),
)


@dataclass(frozen=True)
class Thing:
    name: str
    made: datetime


@pytest.mark.parametrize(
    ("width", "header"),
    [
        (120, ["run", "state", "name", "base", "model"]),
        (50, ["run", "state", "base", "model"]),
        (30, ["run", "state"]),
    ],
)
def test_a_narrow_terminal_leaves_columns_out_and_breaks_no_id(monkeypatch, capsys, width, header):
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(ROWS, COLUMNS, nothing="none")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == header
    assert len(lines) == 3
    assert lines[1].startswith("run-0123456789abcdef  ready")
    assert all(len(line.rstrip()) <= width for line in lines)


def test_what_never_fits_is_folded_and_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "18")
    print_table(ROWS, COLUMNS[:2], nothing="none")
    first = "".join(line[:10].strip() for line in capsys.readouterr().out.splitlines()[1:4])
    assert first.startswith("run-0123456789abcdef"[:10])


def test_a_pipe_gets_every_column_in_full_and_without_colour(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table([("r" * 300, "ready", "n" * 300, "m")], COLUMNS, nothing="none")
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "name", "base", "model"]
    assert row.split() == ["r" * 300, "ready", "n" * 300, "m"]
    assert "\x1b" not in row


def test_nothing_is_said_beside_the_table(capsys):
    print_table([], COLUMNS, nothing="no runs")
    assert capsys.readouterr() == ("", "no runs\n")


def test_a_hostile_name_moves_no_cursor(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    hostile = "\x1b[2J\x07[red]x[/]\r\x9b31m\nsecond line"
    print_table([("run-1", "ready", hostile, "")], COLUMNS, nothing="none")
    print_details({"name": hostile})
    print_error(hostile)
    out, errors = capsys.readouterr()
    for sign in "\x1b\x07\r\x9b":
        assert sign not in out + errors
    assert "[red]x[/]" in out, "nor is it markup"
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 s ago"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (7200, "2 h ago"),
        (86400, "1 d ago"),
        (89 * 86400, "89 d ago"),
        (-90, "in 1 min"),
        (-86400 * 7 - 1, "in 7 d"),
    ],
)
def test_times_are_told_from_now(seconds, told):
    assert ago(NOW - timedelta(seconds=seconds), now=NOW) == told


def test_times_long_ago_are_dates():
    assert ago(NOW - timedelta(days=400), now=NOW) == "2025-10-17"
    assert ago(None) == ""


@pytest.mark.parametrize(
    ("num_bytes", "told"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB"), (1 << 55, "32768.0 TiB")],
)
def test_sizes(num_bytes, told):
    assert size(num_bytes) == told


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min 01 s"), (7260, "2 h 01 min")]
)
def test_lengths_of_time(seconds, told):
    assert duration(seconds) == told


def test_json_is_one_document_with_moments_in_utc(capsys):
    print_json([Thing("a\x1b", NOW)])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert json.loads(out) == [{"name": "a\x1b", "made": "2026-11-21T12:00:00+00:00"}]
