"""The command itself: what it knows, and what it refuses."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from farstep.cli.main import _COMMANDS, main
from tests.support import cli_reference


def test_it_tells_its_version(capsys):
    assert main(["version"]) == 0
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"farstep {version('farstep')}\n" * 2


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("up", "status", "demo", "version"))


@pytest.mark.parametrize("command", [name for name in _COMMANDS if name != "demo"])
def test_every_command_has_its_own_help(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert f"farstep {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["up", "--port", "many"],
        ["status", "--fast"],
        ["runs"],
        ["runs", "show"],
        ["keys", "create", "--operator", "--project=p"],
        ["version", "please"],
        ["usage", "--since=soon"],
        ["logs", "--tail=0"],
        ["runs", "list", "--limit=-1"],
    ],
)
def test_nonsense_is_refused(argv):
    with pytest.raises(SystemExit) as done:
        main(argv)
    assert done.value.code == 2


def test_it_loads_nothing_heavy_and_nothing_of_the_servers():
    code = (
        "import sys; from farstep.cli import local_stack, main\nmain.whole_parser()\n"
        "print([name for name in ('torch', 'starlette', 'farstep_infra', 'farstep_serving') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_reference_is_what_the_parsers_say():
    assert cli_reference.PAGE.read_text() == cli_reference.page(), "`make docs` writes it"


@pytest.mark.parametrize("command", [["--help"], ["version"], ["runs", "list"]])
def test_a_reader_who_goes_away_is_no_error(command, monkeypatch):
    """As `| head` does, at the first line or before it."""
    monkeypatch.setenv("FARSTEP_BASE_URL", "http://127.0.0.1:9")
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "wb") as gone:
        argv = [sys.executable, "-m", "farstep.cli.main", *command]
        done = subprocess.run(argv, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    if command == ["runs", "list"]:
        assert (done.returncode, "does not answer" in done.stderr) == (1, True), "what is wrong is told all the same"
    else:
        # argparse itself looks over a help that nobody reads in some versions of Python.
        assert (done.returncode in ([141] if command == ["version"] else [0, 141]), done.stderr) == (True, "")
