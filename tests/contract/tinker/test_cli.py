"""The `tinker` command against a real server: each call in a process of its own, and what it prints."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import tinker
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from farstep_model.embedded import model_dir
from tests.contract.tinker.commands import Command
from tests.support.tinker_processes import ENDS

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def command(tinker_url, tinker_key, tmp_path_factory):
    return Command(tinker_url, tinker_key, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def trained(tinker_url, tinker_key):
    """A model that was trained for two steps, with its session and checkpoints of both kinds."""
    with tinker.ServiceClient(base_url=tinker_url, api_key=tinker_key) as service:
        client = service.create_lora_training_client(
            "farstep/tiny", rank=4, seed=1, user_metadata={"who": "me"}
        ).result()
        tokens = [1, 40, 41, 42, 43]
        datum = tinker.Datum(
            model_input=tinker.ModelInput.from_ints(tokens),
            loss_fn_inputs={"target_tokens": [*tokens[1:], 2], "weights": [1.0] * 5},
        )
        for _ in range(2):
            step = (
                client.forward_backward([datum], "cross_entropy"),
                client.optim_step(tinker.AdamParams(learning_rate=1e-2)),
            )
            for future in step:
                future.result()
        logprobs = client.forward([datum], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()
        paths = {
            "weights": client.save_state("w1", ttl_seconds=7200, user_metadata={"step": "2"}).result().path,
            "sampler_weights": client.save_weights_for_sampler("s1").result().path,
        }
        yield {
            "run": client.model_id,
            "session": service.holder.get_session_id(),
            "tokens": tokens,
            "logprobs": logprobs,
            **paths,
        }


@pytest.fixture(scope="module")
def lab_key(tinker_url, tinker_key):
    """Of a project that has nothing of what was trained here."""
    headers = {"Authorization": f"Bearer {tinker_key.removeprefix('tml-')}"}
    made = httpx.post(tinker_url + "/v1/keys", json={"project": "lab"}, headers=headers, trust_env=False).json()
    return f"tml-{made['secret']}"


def told(command, *arguments):
    """What a command says as JSON."""
    said = command("-f", "json", *arguments)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def test_the_command_itself(tinker_url, tinker_key, tmp_path):
    """Once as it is installed; elsewhere it is forked, which is quicker."""
    environment = {"TINKER_BASE_URL": tinker_url, "TINKER_API_KEY": tinker_key, "HOME": str(tmp_path), "PATH": ""}
    said = subprocess.run(
        [sys.executable, "-m", "tinker.cli", "model", "list"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode in ENDS, said.stderr
    assert "farstep/tiny" in said.stdout


def test_who_is_asking(command):
    said = command("auth", "status")
    assert said.stdout.splitlines() == ["Credentials available: yes", "Tinker accessible: yes"], said.stderr
    said = command("auth", "whoami")
    assert (said.returncode, "requires JWT auth" in said.stderr) == (1, True), "this server asks for no tokens"
    assert command("version").stdout.startswith("tinker 0.")


def test_runs(command, trained):
    listed = told(command, "run", "list", "--limit", "0")["runs"]
    (mine,) = [run for run in listed if run["training_run_id"] == trained["run"]]
    assert (mine["base_model"], mine["lora_rank"], mine["user_metadata"]) == ("farstep/tiny", 4, {"who": "me"})
    assert trained["run"] in command("run", "list", "--columns", "id,model,owner,lora,status,checkpoint").stdout
    told_of = told(command, "run", "info", trained["run"])
    assert told_of["last_checkpoint"]["tinker_path"] == trained["weights"]
    assert told_of["last_sampler_checkpoint"]["tinker_path"] == trained["sampler_weights"]
    assert trained["weights"] in command("run", "info", trained["run"]).stdout
    missing = command("run", "info", "run-never")
    assert (missing.returncode, "Resource not found" in missing.stderr) == (1, True)


def test_checkpoints(command, trained):
    listed = told(command, "checkpoint", "list", "--run-id", trained["run"])["checkpoints"]
    found = {each["checkpoint_type"]: each for each in listed}
    assert {kind: each["tinker_path"] for kind, each in found.items()} == {
        "training": trained["weights"],
        "sampler": trained["sampler_weights"],
    }
    assert found["training"]["user_metadata"] == {"step": "2"}
    everywhere = told(command, "checkpoint", "list", "--limit", "0")["checkpoints"]
    assert trained["weights"] in [each["tinker_path"] for each in everywhere]
    info = told(command, "checkpoint", "info", trained["weights"])
    assert (info["public"], info["lora_rank"], info["size_bytes"] > 0) == (False, 4, True)

    def after(*arguments):
        said = command("checkpoint", *arguments)
        assert (said.returncode, said.stderr) == (0, "")
        return told(command, "checkpoint", "info", trained["weights"])

    assert after("publish", trained["weights"])["public"] is True
    assert after("unpublish", trained["weights"])["public"] is False
    assert after("set-ttl", trained["weights"], "--remove")["expires_at"] is None
    expires_at = datetime.fromisoformat(after("set-ttl", trained["weights"], "--ttl", "86400")["expires_at"])
    assert abs(expires_at - datetime.now(UTC) - timedelta(days=1)) < timedelta(minutes=5)
    refused = command("checkpoint", "set-ttl", trained["weights"], "--ttl", "60")
    assert (refused.returncode, "ttl_seconds" in refused.stderr) == (1, True)


def exports(command):
    listed = told(command, "checkpoint", "list", "--limit", "0")["checkpoints"]
    return [each["tinker_path"] for each in listed if each["checkpoint_type"] == "external"]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # it trained the output layer: as asked
def test_a_checkpoint_is_downloaded_as_plain_peft(command, trained, tmp_path):
    before = exports(command)
    said = told(command, "checkpoint", "download", trained["weights"], "--output", str(tmp_path))
    folder = tmp_path / trained["weights"].removeprefix("tinker://").replace("/", "_")
    assert said["destination"] == str(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    tokens = trained["tokens"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32), folder)
    with torch.no_grad():
        logprobs = model(torch.tensor([tokens])).logits.log_softmax(-1)[0]
    targets = torch.tensor([*tokens[1:], 2])
    # The same weights in float32, by two codes: what is left is the order of sums.
    torch.testing.assert_close(logprobs[range(5), targets], torch.tensor(trained["logprobs"]), atol=1e-4, rtol=0)
    again = command("checkpoint", "download", trained["weights"], "--output", str(tmp_path))
    assert (again.returncode, "already exists" in again.stderr) == (1, True)
    assert exports(command) == before, "the export was for the download"


def test_checkpoints_are_deleted(command, tinker_url, tinker_key):
    with tinker.ServiceClient(base_url=tinker_url, api_key=tinker_key) as service:
        client = service.create_lora_training_client("farstep/tiny", rank=2).result()
        paths = [client.save_state(name).result().path for name in ("a", "b", "c")]
    gone = command("checkpoint", "delete", paths[0], "--yes")
    assert gone.returncode == 0, gone.stderr
    said = told(command, "checkpoint", "delete", paths[0], paths[1], "-y")
    assert (said["deleted_count"], [each["tinker_path"] for each in said["failed"]]) == (1, [paths[0]])
    said = told(command, "checkpoint", "delete", "--run-id", client.model_id, "--type", "weights", "-y")
    assert said["deleted_count"] == 1
    assert told(command, "checkpoint", "list", "--run-id", client.model_id)["checkpoints"] == []


def test_a_sessions_timeline(command, trained, tmp_path):
    file = tmp_path / "session.pftrace"
    said = told(command, "session", "export-trace", trained["session"], "--output", str(file))
    assert said["destination"] == str(file)
    trace = json.loads(file.read_text())
    (run,) = [each["args"]["name"] for each in trace["traceEvents"] if each["name"] == "process_name"]
    assert run == trained["run"]
    ran = [each for each in trace["traceEvents"] if each["ph"] == "X" and each["tid"] == 1]
    assert [each["name"] for each in ran].count("forward_backward") == 2
    assert [each["ts"] for each in ran] == sorted(each["ts"] for each in ran)
    assert command("session", "export-trace", trained["session"], "--url-only").stdout.startswith("http")


def test_usage(command, trained):
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    window = [f"{day:%Y-%m-%dT%H:%M:%SZ}" for day in (today - timedelta(days=1), today + timedelta(days=2))]
    assert "data" in told(command, "billing", "usage", *window)
    (stored,) = [
        each for each in told(command, "billing", "checkpoint-storage")["data"] if each["project_id"] == "default"
    ]
    assert stored["checkpoint_count"] >= 2
    assert command("billing", "usage", *window).returncode == 0


def test_another_project_goes_on_from_what_was_published(command, tinker_url, lab_key, trained):
    paths = [trained[kind] for kind in ("weights", "sampler_weights")]
    with tinker.ServiceClient(base_url=tinker_url, api_key=lab_key) as service:
        for path in paths:
            assert command("checkpoint", "publish", path).returncode == 0
        client = service.create_training_client_from_state(paths[0]).result()
        tokens = trained["tokens"]
        prompt = tinker.ModelInput.from_ints(tokens)
        targets = {"target_tokens": [*tokens[1:], 2], "weights": [1.0] * 5}
        datum = tinker.Datum(model_input=prompt, loss_fn_inputs=targets)
        logprobs = client.forward([datum], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()
        assert logprobs == pytest.approx(trained["logprobs"], abs=1e-5)
        sampler = service.create_sampling_client(model_path=paths[1]).result()
        sampled = sampler.compute_logprobs(prompt).result()
        assert sampled[1:] == pytest.approx(trained["logprobs"][:-1], abs=1e-4)
        for path in paths:
            assert command("checkpoint", "unpublish", path).returncode == 0
        with pytest.raises(tinker.RequestFailedError, match="no checkpoint"):
            service.create_training_client_from_state(paths[0]).result()


def test_what_is_none_of_the_projects_is_not_found(tinker_url, lab_key, trained, tmp_path):
    other = Command(tinker_url, lab_key, tmp_path)
    listed = [run["training_run_id"] for run in told(other, "run", "list")["runs"]]
    assert trained["run"] not in listed
    for arguments in (
        ("run", "info", trained["run"]),
        ("checkpoint", "list", "--run-id", trained["run"]),
        ("checkpoint", "publish", trained["weights"]),
        ("session", "export-trace", trained["session"]),
    ):
        said = other(*arguments)
        assert (said.returncode, "Resource not found" in said.stderr) == (1, True), arguments
    said = other("checkpoint", "download", trained["weights"], "--output", str(tmp_path))
    assert said.returncode == 1
    assert list(tmp_path.iterdir()) == []
