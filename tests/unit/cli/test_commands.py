"""Every command that asks a control plane, against a real one with fake trainers and samplers behind it."""

import json
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest

import farstep
from farstep.cli.main import main
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_proto.names import CheckpointPath
from tests.support.terminal import on_terminal
from tests.unit.infra.conftest import start_up

pytestmark = pytest.mark.system
NOBODY = "http://127.0.0.1:9"  # the port of "discard", where nothing listens


@pytest.fixture(scope="module")
def up():
    with tempfile.TemporaryDirectory() as home:
        running = start_up(Path(home), "--model=fake/one")
        yield running
        running.stop()


@pytest.fixture(scope="module")
def run(up):
    """A run of project "lab", with a name and metadata."""
    session = up.session(project="lab", user_metadata={"who": "me"})
    return up.run(session, name="first", user_metadata={"note": "\x1b[31mred"})


@pytest.fixture
def command(up, monkeypatch, capsys):
    """`farstep …` on a terminal of so many columns: exit code, output, errors."""
    monkeypatch.setenv("FARSTEP_BASE_URL", up.url)
    monkeypatch.setenv("FARSTEP_API_KEY", up.key)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments, key=None, columns=None):
        if key is not None:
            monkeypatch.setenv("FARSTEP_API_KEY", key)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
        code = main(list(arguments))
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def names(record):
    return {field.name for field in fields(record)}


def table(out):
    """Cells of each line, parted by two spaces or more."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]


def test_runs_are_listed(command, up, run):
    code, out, _ = command("runs", "list", "--json")
    (listed,) = [each for each in json.loads(out) if each["run_id"] == run["run_id"]]
    assert (code, set(listed)) == (0, names(farstep.RunInfo))
    assert {"state": "ready", "name": "first", "project": "lab", "base_model": "fake/one"}.items() <= listed.items()
    assert listed["lora"]["rank"] == 4
    assert listed["created_at"].endswith("+00:00")
    assert command("runs", "list", "-q")[1].split() == [each["run_id"] for each in json.loads(out)]
    assert json.loads(command("runs", "list", "--project=other", "--json")[1]) == []
    assert command("runs", "list", "--state=failed")[::2] == (0, "no runs\n")
    assert run["run_id"] in command("runs", "list", "--state=ready", "--project=lab", "--limit=1", "-q")[1]


@pytest.mark.parametrize(
    ("columns", "header"),
    [
        (45, ["run", "state", "made"]),
        (60, ["run", "state", "name", "made", "base model"]),
        (120, ["run", "state", "name", "made", "base model", "rank", "project", "session"]),
    ],
)
def test_a_table_of_runs_fits(command, run, columns, header):
    out = command("runs", "list", "--project=lab", "--limit=1", columns=columns)[1]
    assert [line for line in out.splitlines() if len(line.rstrip()) > columns] == []
    shown, row = table(out)
    assert shown == header, "a message nobody has is left out"
    told = dict(zip(shown, row, strict=True))
    assert (told["run"], told["state"], told["made"].endswith(" ago")) == (run["run_id"], "ready", True)
    assert {"name": "first", "base model": "fake/one", "rank": "4", "project": "lab"}.items() >= {
        name: value for name, value in told.items() if name not in ("run", "state", "made", "session")
    }.items()


def test_one_run_is_shown_with_how_to_go_on(command, run):
    _, out, _ = command("runs", "show", run["run_id"])
    assert f'farstep.ServiceClient().resume_run("{run["run_id"]}")' in out
    assert "metadata.note  �[31mred" in out
    assert json.loads(command("runs", "show", run["run_id"], "--json")[1])["user_metadata"] == {"note": "\x1b[31mred"}


def test_a_run_is_deleted_when_that_is_meant(command, up):
    run_id = up.run(up.session(project="lab"))["run_id"]
    code, out, said = command("runs", "delete", run_id)
    assert (code, out, said.count("\n")) == (1, "", 1)
    assert "--yes" in said
    assert json.loads(command("runs", "show", run_id, "--json")[1])["state"] == "ready"
    assert json.loads(command("runs", "delete", run_id, "--yes", "--json")[1]) == {"deleted": [run_id]}
    assert "checkpoints list" in command("runs", "show", run_id)[1]


def test_a_run_that_rests_is_shown_and_not_woken(command, up):
    run_id = up.run(up.session(project="lab"))["run_id"]
    (changed,) = json.loads(command("runs", "deactivate", run_id, "--json")[1])
    assert (changed["run_id"], changed["state"]) == (run_id, "inactive")
    assert "resume_run" in command("runs", "show", run_id)[1]
    assert command("runs", "list", "--state=inactive", "-q")[1].split() == [run_id]
    command("runs", "delete", run_id, "--yes")
    code, _, said = command("runs", "deactivate", run_id)
    assert (code, "deleted" in said) == (1, True)


def test_sessions_are_listed(command, up, run):
    closed = up.session(project="lab")
    up.call("DELETE", f"/v1/sessions/{closed}")
    listed = {each["session_id"]: each for each in json.loads(command("sessions", "list", "--json")[1])}
    assert set(listed[closed]) == names(farstep.SessionInfo)
    assert listed[closed]["closed_at"] is not None
    assert listed[run["session_id"]]["user_metadata"] == {"who": "me"}
    still_open = command("sessions", "list", "--open", "-q")[1].split()
    assert run["session_id"] in still_open
    assert closed not in still_open
    assert "who=me" in command("sessions", "list")[1]


def test_no_command_opens_a_session(command, up, run):
    before = len(json.loads(command("sessions", "list", "--json")[1]))
    command("runs", "list")
    command("usage")
    command("checkpoints", "list")
    assert len(json.loads(command("sessions", "list", "--json")[1])) == before


def test_samplers_are_listed_and_stopped(command, up):
    session = up.session(project="lab")
    made = up.call("POST", f"/v1/sessions/{session}/samplers", {"base_model": "fake/one"})
    sampler_id = made["sampler_id"]
    ready = up.call("GET", f"/v1/samplers/{sampler_id}?wait_s=30")
    (listed,) = json.loads(command("samplers", "list", "--json")[1])
    assert set(listed) == names(farstep.SamplerInfo)
    assert (listed["sampler_id"], listed["state"], listed["sampler_url"]) == (sampler_id, "ready", ready["sampler_url"])
    assert sampler_id in command("samplers", "list", columns=60)[1]
    assert ready["sampler_url"] in command("samplers", "show", sampler_id)[1]
    assert command("samplers", "stop", sampler_id)[0] == 1
    assert command("samplers", "stop", sampler_id, "--yes")[:2] == (0, "")
    assert ready["sampler_url"] not in {process["url"] for process in up.processes("sampler")}
    assert command("samplers", "stop", sampler_id, "--yes")[0] == 1


def test_projects_are_made_limited_and_removed(command, up):
    made = json.loads(command("projects", "create", "team", "--max-runs=3", "--json")[1])
    assert set(made) == names(farstep.ProjectInfo)
    assert made["quotas"] == dict.fromkeys(names(farstep.Quotas)) | {"max_runs": 3}
    changed = json.loads(command("projects", "set-quota", "team", "--max-sessions=1", "--json")[1])
    assert (changed["quotas"]["max_sessions"], changed["quotas"]["max_runs"]) == (1, 3), "the rest stays"
    assert "runs 3" in command("projects", "list")[1]
    assert "1 at most" in command("projects", "show", "team")[1]
    session = up.session(project="team")
    refused = up.call("POST", "/v1/sessions", {"project": "team"}, status=403)
    assert "1" in refused["message"]
    assert "still has" in command("projects", "delete", "team", "--yes")[2]
    up.call("DELETE", f"/v1/sessions/{session}")
    unlimited = json.loads(command("projects", "set-quota", "team", "--max-runs=none", "--json")[1])
    assert unlimited["quotas"]["max_runs"] is None
    assert command("projects", "set-quota", "team")[0] == 1
    assert command("projects", "create", "team")[0] == 1
    assert command("projects", "delete", "team", "--yes")[0] == 0
    assert "team" not in command("projects", "list", "-q")[1].split()


def test_a_shell_learns_what_programs_of_the_tinker_sdk_are_told(command, up, monkeypatch, capsys):
    code, said, errors = command("tinker-env")
    assert (code, errors) == (0, "")
    script = said + 'echo "$TINKER_BASE_URL $TINKER_API_KEY"'
    given = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert given == [up.url, f"tml-{up.key}"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, said, errors = command("tinker-env")
    assert (code, up.key in said + errors, "hidden" in errors) == (0, False, True)
    assert up.key in command("tinker-env", "--show-key")[1]


def test_without_a_key_there_is_nothing_to_tell_a_shell(command, monkeypatch):
    monkeypatch.delenv("FARSTEP_API_KEY")
    code, out, said = command("tinker-env")
    assert (code, out, "FARSTEP_API_KEY" in said) == (1, "", True)


def test_a_key_is_made_as_the_tinker_sdk_takes_it(command):
    code, secret, said = command("keys", "create", "--project=lab", "--tinker")
    assert (code, said, secret.startswith("tml-fsk-")) == (0, "", True)
    assert json.loads(command("keys", "create", "--project=lab", "--tinker", "--json")[1])["secret"].startswith("tml-")


def test_keys_are_made_shown_once_and_revoked(command, up, run):
    code, secret, said = command("keys", "create", "--name=laptop", "--project=lab", "--ttl=1h")
    assert (code, said, len(secret.split())) == (0, "", 1), "alone, for a shell to keep"
    secret = secret.strip()
    (key,) = [each for each in json.loads(command("keys", "list", "--json")[1]) if each["name"] == "laptop"]
    assert set(key) == names(farstep.KeyInfo)
    assert (key["project"], key["operator"], key["revoked_at"]) == ("lab", False, None)
    assert secret.startswith(key["hint"])
    assert secret not in command("keys", "list")[1]
    assert run["run_id"] in command("runs", "list", "-q", key=secret)[1]
    code, _, said = command("keys", "create")
    assert (code, "operator" in said) == (1, True), "a project's key makes no keys"
    out = command("keys", "revoke", key["key_id"], "--yes", "--json", key=up.key)[1]
    assert json.loads(out) == {"revoked": [key["key_id"]]}
    code, out, said = command("runs", "list", key=secret)
    assert (code, out, said.count("\n")) == (1, "", 1)
    assert "revoked" in said
    rows = command("keys", "list", key=up.key)[1].splitlines()
    assert any(key["key_id"] in row and "revoked" in row for row in rows)


def test_a_key_of_an_operator(command, up):
    made = json.loads(command("keys", "create", "--operator", "--json")[1])
    assert set(made) == names(farstep.CreatedKey)
    assert made["key"]["operator"] is True
    assert command("keys", "list", "-q", key=made["secret"])[0] == 0


def test_keys_see_their_project_alone(command, up, run):
    other = command("keys", "create", "--project=elsewhere")[1].strip()
    assert command("runs", "list", "-q", key=other)[:2] == (0, "")
    code, _, said = command("runs", "show", run["run_id"])
    assert (code, "no run" in said) == (1, True)


def test_pages_are_followed_to_the_end(command, up, monkeypatch):
    for _ in range(5):
        up.session(project="pages")
    monkeypatch.setattr("farstep._control_requests._PAGE", {"limit": "2"})
    sessions = command("sessions", "list", "-q")[1].split()
    assert len(sessions) == len(set(sessions)) >= 5
    assert command("sessions", "list", "-q", "--limit=3")[1].split() == sessions[-3:], "the newest"


def test_logs_of_one_process_and_of_all(command, up):
    (trainer,) = up.processes("trainer")
    code, out, _ = command("logs", trainer["name"])
    assert (code, "trainer says something before it is ready" in out) == (0, True)
    assert command("logs", trainer["name"], "--tail=1")[1].count("\n") == 1
    _, out, _ = command("logs")
    assert f"{trainer['name']:{width_of(up)}} | trainer says something" in out
    told = [json.loads(line) for line in command("logs", "--json")[1].splitlines()]
    assert {"process": trainer["name"], "line": "trainer says something before it is ready"} in told
    code, _, said = command("logs", "trainer-99")
    assert (code, said.count("\n")) == (1, 1)


def width_of(up):
    return max(len(process["name"]) for process in up.processes())


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs", "list"],
        ["runs", "show", "run-1"],
        ["samplers", "list"],
        ["sessions", "list"],
        ["projects", "list"],
        ["keys", "list"],
        ["usage"],
        ["logs"],
        ["checkpoints", "list"],
        ["status"],
    ],
    ids=" ".join,
)
def test_every_command_says_in_one_line_what_is_wrong(command, monkeypatch, arguments):
    code, out, said = command(*arguments, key="fsk-wrong")
    assert (code, out, said.count("\n")) == (1, "", 1)
    assert "wrong key" in said
    monkeypatch.setenv("FARSTEP_BASE_URL", NOBODY)
    code, out, said = command(*arguments)
    assert (code, out, said.count("\n")) == (1, "", 1)
    assert "does not answer" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs", "show", "run-unknown"],
        ["runs", "delete", "run-unknown", "--yes"],
        ["runs", "show", "../../etc/passwd"],
        ["samplers", "show", "sampler-unknown"],
        ["projects", "show", "nobody"],
        ["keys", "revoke", "key-unknown", "--yes"],
        ["keys", "revoke", "..", "--yes"],
        ["checkpoints", "get", "run-unknown/weights/a"],
        ["usage", "--run=../x"],
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_told_by_name(command, arguments):
    code, out, said = command(*arguments)
    assert (code, out, said.count("\n")) == (1, "", 1)
    assert "Traceback" not in said


@pytest.fixture
def terminal(up, monkeypatch):
    """`farstep …` as a person sees it, with FARSTEP_PROGRESS and CI as they are on his machine."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("FARSTEP_BASE_URL", up.url)
    monkeypatch.setenv("FARSTEP_API_KEY", up.key)

    def call(*arguments, answer="", **environment):
        argv = [sys.executable, "-m", "farstep.cli.main", *arguments]
        return on_terminal(argv, answer=answer, environment=environment)

    return call


@pytest.fixture(scope="module")
def checkpoint(up):
    """One of two files, half a megabyte."""
    path = CheckpointPath("run-big", "weights", "one")
    lora = {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj"]}
    files = {"adapter_model.safetensors": b"x" * (1 << 19), "adapter_config.json": b"{}"}
    CheckpointStore(up.home / "store").write(path, files, {"base_model": "fake/one", "lora": lora})
    return path.checkpoint_id


def test_a_person_sees_colours_and_is_asked(terminal, up, run):
    code, shown = terminal("runs", "list")
    assert (code, "\x1b[32mready" in shown) == (0, True)
    code, shown = terminal("runs", "list", NO_COLOR="1")
    assert (code, "\x1b[32m" in shown, run["run_id"] in shown) == (0, False, True)
    code, shown = terminal("runs", "delete", run["run_id"], answer="n\n")
    assert (code, "nothing was done" in shown) == (1, True)
    run_id = up.run(up.session(project="lab"))["run_id"]
    code, shown = terminal("runs", "delete", run_id, answer="y\n")
    assert (code, f"delete run {run_id}: this cannot be taken back. Go on? [y/N]" in shown) == (0, True)


def test_a_person_is_told_that_a_secret_is_shown_once(terminal):
    code, shown = terminal("keys", "create", "--name=mine", "--project=lab")
    assert (code, "cannot be shown again" in shown, "fsk-" in shown) == (0, True, True)


def test_a_download_has_a_bar_a_file_on_a_terminal_alone(terminal, command, checkpoint, tmp_path):
    code, shown = terminal("checkpoints", "export", checkpoint, f"--out={tmp_path / 'shown'}")
    assert code == 0
    for told in ("adapter_model.safetensors", "adapter_config.json", "kB", "0:00:00"):
        assert told in shown
    code, out, said = command("checkpoints", "export", checkpoint, f"--out={tmp_path / 'quiet'}")
    assert (code, out, said) == (0, f"{tmp_path / 'quiet'}\n", "")
    assert {file.name for file in (tmp_path / "shown").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }


def test_a_checkpoint_is_shown_and_its_end_changed(command, checkpoint):
    shown = json.loads(command("checkpoints", "get", checkpoint, "--json")[1])
    assert set(shown) == names(farstep.Checkpoint)
    assert "512.0 KiB" in command("checkpoints", "get", checkpoint)[1]
    command("checkpoints", "ttl", checkpoint, "7d")
    assert "in 6 d" in command("checkpoints", "get", checkpoint)[1]
    command("checkpoints", "ttl", checkpoint, "never")
    assert "never" in command("checkpoints", "get", checkpoint)[1]


def test_status_fits_a_narrow_terminal(command, up):
    out = command("status", columns=60)[1]
    assert [line for line in out.splitlines()[1:] if len(line.rstrip()) > 60] == []
    assert "trainer" in out


def test_a_checkpoint_is_pushed_and_its_address_told(command, checkpoint, monkeypatch):
    calls = []

    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append((repo_id, private))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append(sorted(file.name for file in Path(folder_path).iterdir()))
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert command("checkpoints", "push", checkpoint, "me/mine")[:2] == (0, "https://hub/me/mine\n")
    assert calls == [("me/mine", True), files], "private, if nothing is said"
    calls.clear()
    out = command("checkpoints", "push", checkpoint, "me/mine", "--public", "--json")[1]
    assert (json.loads(out), calls[0]) == ({"url": "https://hub/me/mine"}, ("me/mine", False))


def test_what_is_no_adapter_is_refused_before_a_trainer_starts(command, up, tmp_path):
    (tmp_path / "adapter").mkdir()
    before = len(up.processes())
    code, out, said = command("checkpoints", "import", str(tmp_path / "adapter"))
    assert (code, out, said.count("\n")) == (1, "", 1)
    assert "adapter_config.json" in said
    assert len(up.processes()) == before
