"""What `farstep train` says to people."""

import math
import sys
from types import SimpleNamespace

import pytest

from farstep.cli import narration
from farstep.cli.narration import Narrator


def ended(loss, **extra):
    result = SimpleNamespace(steps=1, loss=loss, accuracy=None, stopped_because="", extra=extra)
    return SimpleNamespace(state="completed", result=result)


@pytest.mark.parametrize(
    ("trainer", "told"),
    [
        (ended(0.25), "completed after 1 step, loss 0.25\n"),
        (ended(math.nan), "completed after 1 step\n"),
        (ended(0.25, **{"rollout/reward_mean": 0.96875}), "completed after 1 step, loss 0.25, reward 0.9688\n"),
    ],
)
def test_the_last_line_says_what_came_of_it(trainer, told, capsys):
    Narrator().end(trainer)
    assert capsys.readouterr().out == told


def test_a_preview_is_wrapped_under_its_column_at_a_terminal_alone(monkeypatch, capsys):
    preview = SimpleNamespace(lines=lambda: {"data": "one " * 30 + "end", "folder": "x" * 90})
    Narrator().preview(preview)
    assert len(capsys.readouterr().err.splitlines()) == 2
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Narrator().preview(preview)
    lines = capsys.readouterr().err.splitlines()
    assert [len(line) < 80 for line in lines[:2]] == [True, True]
    assert lines[1].startswith(" " * 8 + "one")
    assert lines[-1].strip().endswith("x" * 90)  # what one may want to copy stays whole


def test_whoever_waits_at_a_terminal_is_told_at_once(monkeypatch, capsys):
    for is_shown in (False, True):
        monkeypatch.setattr(narration._progress, "is_shown", lambda is_shown=is_shown: is_shown)
        Narrator().begin("config.yaml")
        Narrator(in_json=True).begin("config.yaml")
    assert capsys.readouterr().err == "reading config.yaml and its data …\n"
