"""`farstep logs` against a fake control plane that streams what a test wants."""

import io
import json
import signal

import pytest

from farstep.cli.main import main
from tests.unit.client.fake_control import ControlPlane
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import KEY, Host
from tests.unit.client.fake_trainer import Trainer


@pytest.fixture(scope="module")
def host():
    host = Host()
    yield host
    host.stop()


@pytest.fixture
def control(host, monkeypatch):
    control = ControlPlane(host, Trainer(host), Sampler(host))
    monkeypatch.setenv("FARSTEP_BASE_URL", control.url)
    monkeypatch.setenv("FARSTEP_API_KEY", KEY)
    return control


def test_one_process_is_shown_as_it_wrote(control, capsys):
    control.logs["trainer-1"] = [b"one\n\x1b[32mtwo\x1b[0m\nhalf"]
    assert main(["logs", "trainer-1"]) == 0
    assert capsys.readouterr().out == "one\n\x1b[32mtwo\x1b[0m\nhalf\n", "a pipe gets the bytes"
    assert main(["logs", "trainer-1", "--tail=2"]) == 0
    assert capsys.readouterr().out.startswith("\x1b[32mtwo")


def test_a_terminal_obeys_nothing_in_a_log(control, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    control.logs["trainer-1"] = [b"a\tb \x1b[2Jc\n"]
    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    assert main(["logs", "trainer-1"]) == 0
    assert shown.getvalue() == "a       b \N{REPLACEMENT CHARACTER}[2Jc\n"


def test_of_several_each_line_has_its_name(control, capsys):
    control.logs |= {"trainer-1": [b"a\nb\n"], "sampler-10": [b"c\n"]}
    assert main(["logs"]) == 0
    assert capsys.readouterr().out == "trainer-1  | a\ntrainer-1  | b\nsampler-10 | c\n"


def test_json_is_an_object_a_line(control, capsys):
    control.logs["trainer-1"] = [b'a\n"b"\n']
    assert main(["logs", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"process": "trainer-1", "line": "a"}, {"process": "trainer-1", "line": '"b"'}]


def test_who_follows_gets_whole_lines_of_all(control, capsys):
    control.logs |= {"trainer-1": [b"a\n", b"be", b"gun\n", b"c"], "sampler-1": [b"", b"d\n"]}
    assert main(["logs", "--follow"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("trainer")] == [
        "trainer-1 | a", "trainer-1 | begun", "trainer-1 | c",
    ]  # fmt: skip
    assert "sampler-1 | d" in lines


def test_ctrl_c_ends_it_quietly(control, farstep, monkeypatch):
    control.is_stuck = True
    control.logs["trainer-1"] = [b"a\n"]
    process = farstep("logs", "trainer-1", "--follow")
    assert process.stdout.readline() == "a\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130
