"""The command itself: what it knows, and what it refuses."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from farstep.cli.main import main


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


@pytest.mark.parametrize("command", ["up", "status"])
def test_every_command_has_its_own_help(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert f"farstep {command}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["fly"], ["up", "--port", "many"], ["status", "--fast"]])
def test_nonsense_is_refused(argv):
    with pytest.raises(SystemExit) as done:
        main(argv)
    assert done.value.code == 2


def test_it_loads_nothing_heavy_and_nothing_of_the_servers():
    code = (
        "import sys; from farstep.cli import local_stack, main, status, up\n"
        "print([name for name in ('torch', 'starlette', 'farstep_infra', 'farstep_serving') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
