"""`farstep up` with one's own model and several replicas: found by `ServiceClient()`, shown by `farstep status`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import httpx
import pytest
import torch
from openai import OpenAI
from transformers import LlamaConfig, LlamaForCausalLM

from farstep import AdamParams, Datum, ModelInput, NotFoundError, SamplingParams, ServiceClient
from farstep.cli.local_stack import LocalStack
from farstep_model.embedded import model_dir

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NAMES = ("some/model", "some/model-base")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """A small Llama with random weights in Hugging Face layout."""
    folder = tmp_path_factory.mktemp("own-model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=2, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(model_dir() / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def stack(own_model, tmp_path_factory):
    names = [f"--served-name={name}" for name in NAMES]
    with LocalStack(model=str(own_model), replicas=2, home=tmp_path_factory.mktemp("home"), more=names) as stack:
        yield stack


@pytest.fixture
def service(stack, monkeypatch):
    monkeypatch.setenv("FARSTEP_HOME", str(stack.home))
    for name in ("FARSTEP_BASE_URL", "FARSTEP_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with ServiceClient() as service:  # finds it by local.json
        yield service


def step(trainer, learning_rate=1e-2):
    trainer.forward_backward([Datum.from_prompt_completion([1, 40, 41], [60, 61, 2])])
    return trainer.optim_step(AdamParams(learning_rate=learning_rate))


def processes(stack):
    """What `farstep status --json` tells of them."""
    command = [sys.executable, "-m", "farstep.cli.main", "status", "--json"]
    environment = {**os.environ, "FARSTEP_HOME": str(stack.home)}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return json.loads(shown)["status"]["processes"]


def restarts(stack, name):
    return next(int(process["num_restarts"]) for process in processes(stack) if process["name"] == name)


def all_run(stack):
    return all(process["state"] == "running" for process in processes(stack))


def test_own_model_and_two_replicas(service, own_model):
    trainer = service.create_lora_training_client(str(own_model), rank=4, seed=0)
    assert trainer.get_info().max_seq_len == 256
    assert trainer.get_tokenizer().decode(trainer.get_tokenizer().encode("hello")) == "hello"
    for version in (1, 2):
        step(trainer).result()
        sampler = trainer.save_weights_and_get_sampling_client()
        futures = [
            sampler.sample(ModelInput.from_ints([1, 40 + i]), 1, SamplingParams(max_tokens=4)) for i in range(40)
        ]
        assert {future.result().policy_version for future in futures} == {version}


def test_a_model_is_trained_sampled_and_resumed_under_any_of_its_names(service, stack, own_model):
    trainer = service.create_lora_training_client("some/model", rank=4, seed=0)
    assert trainer.get_info().base_model == "some/model"
    step(trainer).result()
    sampler = trainer.save_weights_and_get_sampling_client(name="named")
    assert sampler.get_base_model() == "some/model"
    with OpenAI(base_url=f"{sampler.url}/v1", api_key=stack.api_key) as client:
        assert {model.id for model in client.models.list()} >= {*NAMES, str(own_model), trainer.run_id}
        assert client.completions.create(model="some/model-base", prompt=[1, 40], max_tokens=2).choices
    path = trainer.save_state("kept").result().path
    assert service.get_run(trainer.run_id).base_model == "some/model"
    (kept,) = [each for each in service.list_checkpoints(trainer.run_id) if each.path == path]
    assert kept.base_model == str(own_model), "whatever it was called"
    resumed = service.create_training_client_from_state_with_optimizer(path)
    assert resumed.step == trainer.step == 1
    models = {model.model_name for model in service.get_server_capabilities().supported_models}
    assert set(NAMES) <= models


def test_checkpoints_are_listed_and_fetched_by_url(service, own_model):
    trainer = service.create_lora_training_client(str(own_model), rank=4)
    step(trainer)
    path = trainer.save_state("kept", metadata={"note": "first"}).result().path
    trainer.save_weights_for_sampler("served").result()
    checkpoints = {checkpoint.path: checkpoint for checkpoint in service.list_checkpoints(trainer.run_id)}
    assert {checkpoint.target for checkpoint in checkpoints.values()} == {"trainer", "sampler"}
    assert checkpoints[path].step == 1
    archive = service.get_checkpoint_archive_url(checkpoints[path].checkpoint_id)
    files = {file.name: httpx.get(file.url) for file in archive.files}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(files)
    assert all(response.status_code == 200 for response in files.values())
    forged = httpx.get(archive.files[0].url.replace("signature=", "signature=0"))
    assert forged.status_code == 403


def make_key(stack, **fields):
    """A key that the control plane has made, and its secret."""
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    created = httpx.post(f"{stack.base_url}/v1/keys", json=fields, headers=headers, trust_env=False)
    assert created.status_code == 201, created.text
    return created.json()["key"]["key_id"], created.json()["secret"]


def test_projects_share_a_fleet_and_do_not_meet(stack, own_model, monkeypatch):
    """With keys of the control plane's own, through its trainer, its router and its checkpoints."""
    for name in ("FARSTEP_BASE_URL", "FARSTEP_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("maple", "birch"):
        headers = {"Authorization": f"Bearer {stack.api_key}"}
        httpx.post(f"{stack.base_url}/v1/projects", json={"project": name}, headers=headers, trust_env=False)
    key_id, maple = make_key(stack, name="of a test", project="maple")
    _, birch = make_key(stack, name="of a test", project="birch")
    with ServiceClient(base_url=stack.base_url, api_key=maple) as service:
        trainer = service.create_lora_training_client(str(own_model), rank=4, seed=0)
        step(trainer).result()
        sampler = trainer.save_weights_and_get_sampling_client(name="kept")
        prompt, params = ModelInput.from_ints([1, 40]), SamplingParams(max_tokens=4)
        assert sampler.sample(prompt, 1, params).result().policy_version == 1
        state = trainer.save_state("state").result().path
        kept, _ = service.list_checkpoints(trainer.run_id)
    with ServiceClient(base_url=stack.base_url, api_key=birch) as stranger:
        assert stranger.list_runs() == []
        for look in (stranger.get_run, stranger.list_checkpoints, stranger.resume_run):
            with pytest.raises(NotFoundError):
                look(trainer.run_id)
        with pytest.raises(NotFoundError):
            stranger.create_training_client_from_state(state)
        with pytest.raises(NotFoundError, match="no checkpoint"):
            stranger.create_sampling_client(model_path=kept.path)
    urls = (stack.trainer_url, stack.sampler_url)

    def statuses(key, path="/v1/info"):
        headers = {"Authorization": f"Bearer {key}"}
        return [httpx.get(url + path, headers=headers, trust_env=False).status_code for url in urls]

    assert statuses(birch, f"/v1/runs/{trainer.run_id}")[0] == 404
    assert statuses(maple, f"/v1/runs/{trainer.run_id}")[0] == 200
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    httpx.delete(f"{stack.base_url}/v1/keys/{key_id}", headers=headers, trust_env=False).raise_for_status()
    deadline = time.monotonic() + 60
    while statuses(maple) != [401, 401]:
        assert time.monotonic() < deadline
        time.sleep(0.25)
    assert statuses(birch) == [200, 200]


def test_status_shows_what_runs(stack, service):
    shown = processes(stack)
    roles = ["control", "router", "sampler", "sampler", "trainer"]
    assert sorted(process["role"] for process in shown) == roles
    assert {process["state"] for process in shown} == {"running"}


def test_a_replica_that_dies_is_done_without_until_it_is_back(service, stack, own_model):
    trainer = service.create_lora_training_client(str(own_model), rank=4, seed=0)
    step(trainer).result()
    sampler = trainer.save_weights_and_get_sampling_client()
    victim, name = next((each["pid"], each["name"]) for each in processes(stack) if each["role"] == "sampler")
    futures = [sampler.sample(ModelInput.from_ints([1, 40 + i]), 1, SamplingParams(max_tokens=100)) for i in range(40)]
    os.kill(int(victim), signal.SIGKILL)
    assert {future.result(timeout=60).policy_version for future in futures} == {1}
    deadline = time.monotonic() + 60
    while not (restarts(stack, name) == 1 and all_run(stack)):
        assert time.monotonic() < deadline, processes(stack)
        time.sleep(0.2)
