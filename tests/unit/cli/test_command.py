"""What the commands share: lengths of time, questions before what cannot be taken back."""

import argparse
import io
from datetime import UTC, date, datetime, timedelta

import pytest

from farstep.cli import command


class Terminal(io.StringIO):
    def isatty(self):
        return True


def asked(monkeypatch, answer):
    """The question that is put to somebody who answers so."""
    shown = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr("sys.stderr", shown)
    return shown


@pytest.mark.parametrize("answer", ["y\n", "Yes\n"])
def test_who_says_yes_goes_on(monkeypatch, answer):
    shown = asked(monkeypatch, answer)
    command.confirm("delete run a", argparse.Namespace(yes=False))
    assert shown.getvalue() == "delete run a: this cannot be taken back. Go on? [y/N] "


@pytest.mark.parametrize("answer", ["\n", "n\n", "", "yess\n"])
def test_who_says_anything_else_does_not(monkeypatch, answer):
    asked(monkeypatch, answer)
    with pytest.raises(command.Refused, match="nothing was done"):
        command.confirm("delete run a", argparse.Namespace(yes=False))


def test_where_nobody_can_be_asked_it_takes_the_option(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(command.Refused, match="--yes"):
        command.confirm("delete run a", argparse.Namespace(yes=False))
    command.confirm("delete run a", argparse.Namespace(yes=True))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("12h", 43200), ("7d", 604800), ("2w", 1209600)]
)
def test_lengths_of_time(text, seconds):
    assert command.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5h", "7 d", "d", "1y", "٣d", "99999999999", "9999999w", "1" * 5000])
def test_what_is_no_length_of_time(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no length of time"):
        command.seconds(text)


def test_days():
    assert command.day("2026-01-31") == date(2026, 1, 31)
    before = datetime.now(UTC)
    assert command.day("7d") in {(moment - timedelta(days=7)).date() for moment in (before, datetime.now(UTC))}
    with pytest.raises(argparse.ArgumentTypeError, match="neither a day nor"):
        command.day("yesterday")


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "99999999999", "²"])
def test_what_is_no_count(text):
    with pytest.raises(argparse.ArgumentTypeError):
        command.positive(text)
