"""`farstep up` and `farstep status` as a person uses them."""

import json
import os
import signal
import socket
import subprocess
import time

import psutil
import pytest

from farstep.cli import local_stack, status
from farstep.cli.local_stack import LocalStack, LocalStackError
from farstep_proto.v1 import control_pb2

pytestmark = pytest.mark.system


def read_until(process, text):
    seen = ""
    while text not in seen:
        line = process.stdout.readline()
        assert line, seen + process.stderr.read()
        seen += line
    return seen


def everyone(process):
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


@pytest.fixture
def running(farstep, home):
    process = farstep("up", "--model=fake/one", "--port=0")
    said = read_until(process, "FARSTEP_API_KEY")
    yield process, said
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def test_up_tells_how_to_connect_but_not_the_key(running, farstep, home):
    process, said = running
    local = json.loads((home / "local.json").read_text())
    assert local["base_url"] in said
    assert local["api_key"] not in said
    assert str(home / "local.json") in said
    assert 'create_lora_training_client("fake/one"' in said
    export = said[said.index("export FARSTEP_BASE_URL") :]
    script = export + 'echo "$FARSTEP_BASE_URL $FARSTEP_API_KEY"'
    given = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert given == [local["base_url"], local["api_key"]], "the lines work as they are"

    shown = farstep("status")
    out, _ = shown.communicate(timeout=20)
    assert shown.returncode == 0
    for role in ("control", "trainer", "sampler"):
        assert role in out
    as_json = farstep("status", "--json")
    content = json.loads(as_json.communicate(timeout=20)[0])
    assert content["status"]["base_url"] == local["base_url"]
    assert {listed["state"] for listed in content["status"]["processes"]} == {"running"}
    assert content["runs"] == []

    family = everyone(process)
    assert len(family) == 4
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out, errors) == (0, "stopped\n", "")
    assert not any(child.is_running() for child in family)
    assert not (home / "local.json").exists()


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT], [signal.SIGKILL]])
def test_however_it_is_stopped_nothing_stays(running, signals):
    process, _ = running
    family = everyone(process)
    for number in signals:
        os.killpg(process.pid, number)
    process.wait(timeout=30)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_ctrl_c_while_it_starts(farstep, home):
    process = farstep("up", "--model=fake/hangs", "--port=0")
    while len(everyone(process)) < 3:
        time.sleep(0.05)
    family = everyone(process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert not any(child.is_running() for child in family)


def test_the_end_of_the_control_plane_is_told(running, home):
    process, _ = running
    (control,) = psutil.Process(process.pid).children()
    control.kill()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the control plane ended" in errors
    assert str(home / "logs" / "control.log") in errors


def test_what_went_wrong_is_told(farstep):
    process = farstep("up", "--model=fake/fails", "--port=0")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "there is no model fake/fails" in errors
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = farstep("up", f"--port={taken.getsockname()[1]}")
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "--port" in errors
    assert "there is no model" not in errors, "the log of an earlier start is not this one's"


def test_missing_packages_are_named_with_the_command(monkeypatch, home):
    monkeypatch.setattr(local_stack, "_NEEDED", ("starlette", "no_such_package"))
    with pytest.raises(LocalStackError, match=r"no_such_package.*pip install 'farstep\[all\]'"), LocalStack():
        pass
    assert not home.exists()


def test_status_where_nothing_runs(monkeypatch, capsys):
    monkeypatch.setattr("farstep._settings.DEFAULT_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
    assert status.main([]) == 1
    assert "farstep up" in capsys.readouterr().err


def test_status_with_a_wrong_key(running, monkeypatch, capsys):
    monkeypatch.setenv("FARSTEP_API_KEY", "fsk-wrong")
    assert status.main([]) == 1
    assert "wrong key" in capsys.readouterr().err


def test_names_are_shown_as_they_are(capsys):
    run = control_pb2.ProvisionedRun(run_id="run-1", state="ready", name="[red]x[/]\x1b[2J")
    status._print(control_pb2.Status(), [run] * 30)
    shown = capsys.readouterr().out
    assert "[red]x[/]\N{REPLACEMENT CHARACTER}[2J" in shown
    assert "10 earlier" in shown


def test_what_the_control_plane_is_told_is_passed_on(farstep, tmp_path):
    told = ["--idle-timeout=7.5", "--max-stacks=3", f"--journal-dir={tmp_path}/j", "--tool-call-parser=hermes"]
    told += ["--custom-losses", "--tinker-jwt"]
    process = farstep("up", "--model=fake/one", "--port=0", *told)
    read_until(process, "FARSTEP_API_KEY")
    (control,) = psutil.Process(process.pid).children()
    assert set(told) <= set(control.cmdline())
    assert not any("trainer-replicas" in argument for argument in control.cmdline()), "what was not said is not passed"
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
