"""`farstep completion`: the script is run by the shell that it is for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from farstep.cli.main import main

FAKE = """#!/bin/sh
case "$1 $2 $3" in
  "runs list --quiet") echo run-aaa; echo run-bbb ;;
  "checkpoints list --quiet") echo run-aaa/weights/first ;;
esac
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "farstep.bash"
    done = subprocess.run(
        [sys.executable, "-m", "farstep.cli.main", "completion", "bash"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    file.write_text(done.stdout)
    return file


@pytest.fixture
def complete(script, tmp_path):
    """What bash offers for a line that ends where Tab is pressed."""
    fake = tmp_path / "bin" / "farstep"
    fake.parent.mkdir()
    fake.write_text(FAKE)
    fake.chmod(0o755)
    asking = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; '
        '$(complete -p farstep | sed "s/.*-F \\([^ ]*\\) .*/\\1/") farstep "${COMP_WORDS[COMP_CWORD]}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )

    def ask(*words: str) -> list[str]:
        environment = {**os.environ, "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
        command = ["bash", "--norc", "-c", asking, "bash", str(script), "farstep", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=30)
        assert done.stderr == ""
        return [word.strip() for word in done.stdout.split("\n") if word.strip()]

    return ask


def test_commands_and_their_subcommands(complete):
    assert {"runs", "checkpoints", "keys", "usage", "completion"} <= set(complete(""))
    assert complete("sam") == ["samplers"]
    assert set(complete("runs", "de")) == {"delete", "deactivate"}


def test_options_and_their_choices(complete):
    assert {"--json", "--limit", "--state", "--quiet"} <= set(complete("runs", "list", "--"))
    assert complete("runs", "list", "--state", "inac") == ["inactive"]
    assert set(complete("completion", "")) >= {"bash", "zsh", "fish"}


def test_ids_of_what_there_is(complete):
    assert complete("runs", "show", "") == ["run-aaa", "run-bbb"]
    assert complete("runs", "show", "run-b") == ["run-bbb"]
    assert complete("checkpoints", "get", "") == ["run-aaa/weights/first"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script_that_it_can_read(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "deactivate" in out
    if shutil.which(shell):
        file = tmp_path / "script"
        file.write_text(out)
        subprocess.run([shell, "-n", str(file)], check=True, timeout=30)


def test_other_shells_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["completion", "cmd"])
    assert ended.value.code == 2
