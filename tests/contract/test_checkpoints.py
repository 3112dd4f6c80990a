"""Checkpoints as a user handles them, on a real trainer and sampler: listed, kept for a while, removed, taken home."""

import json
import os
import time

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import farstep
from farstep_model.embedded import model_dir
from tests.support.processes import KEY, running, trainer_and_sampler
from tests.support.s3 import new_bucket, s3_server

IDS = torch.arange(3, 40)[None]
# Merging adds B·A to the weights once instead of to each output: fp32 sums in another order, on logits of about 10.
SAME = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def train(service):
    """A run with weights that are not fresh."""

    def make(**options):
        trainer = service.create_lora_training_client("farstep/tiny", rank=4, seed=1, **options)
        datum = farstep.Datum.from_prompt_completion([5, 6, 7, 8], [9, 10, 11])
        for _ in range(3):
            trainer.forward_backward([datum])
            trainer.optim_step(farstep.AdamParams(learning_rate=1e-2)).result()
        return trainer

    return make


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_checkpoints_of_a_trainer_alone_are_listed_kept_and_removed(service, train):
    trainer = train()
    paths = [trainer.save_state(name).result().path for name in ("a", "b")]
    assert [found.path for found in service.list_checkpoints(trainer.run_id)] == paths
    assert trainer.list_checkpoints() == service.list_checkpoints(trainer.run_id)
    kept = service.set_checkpoint_ttl(paths[0], 3600)
    assert 3590 < kept.expires_at.timestamp() - time.time() <= 3600
    assert service.set_checkpoint_ttl(kept.id, None).expires_at is None
    service.delete_checkpoint(paths[0])
    assert [found.path for found in service.list_checkpoints(trainer.run_id)] == paths[1:]
    for call in (service.delete_checkpoint, lambda path: service.set_checkpoint_ttl(path, 5)):
        with pytest.raises(farstep.NotFoundError, match="no checkpoint"):
            call(paths[0])
    with pytest.raises(farstep.RemoteOpError, match="no checkpoint"):
        trainer.load_state(paths[0]).result()


def test_an_expired_one_says_when_it_went(service, train):
    trainer = train()
    path = trainer.save_state("short", ttl_seconds=1).result().path
    time.sleep(1.1)
    assert service.list_checkpoints(trainer.run_id) == []
    with pytest.raises(farstep.RemoteOpError, match=r"has expired, on 20.*UTC"):
        trainer.load_state(path).result()
    assert trainer.save_state("short").result().path == path


def test_what_a_sampler_serves_it_goes_on_serving_when_it_is_deleted(service, train):
    trainer = train()
    path = trainer.save_weights_for_sampler("served").result().path
    with service.create_sampling_client(model_path=path) as sampler:
        prompt = farstep.ModelInput.from_ints([3, 4, 5])
        before = sampler.compute_logprobs(prompt).result()
        service.delete_checkpoint(path)
        assert sampler.compute_logprobs(prompt).result() == before


@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
def test_an_exported_adapter_is_what_plain_peft_loads(service, train, tmp_path, kind):
    trainer = train()
    saved = trainer.save_state("x") if kind == "weights" else trainer.save_weights_for_sampler("x")
    folder = service.export_checkpoint(saved.result().path, "peft", tmp_path / "deep" / "out")
    assert folder == tmp_path / "deep" / "out"
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert os.listdir(folder.parent) == ["out"]
    changed = logits(PeftModel.from_pretrained(plain(model_dir()), folder)) - logits(plain(model_dir()))
    assert changed.abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft, of what the merge takes care of
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True, "use_dora": True}, {"train_unembed": True}], ids=["lora", "dora", "unembed"]
)
def test_a_merged_model_is_base_and_adapter_to_plain_transformers(service, train, tmp_path, options):
    path = train(**options).save_state("x").result().path
    peft = service.export_checkpoint(path, out_dir=tmp_path / "peft")
    merged = service.export_checkpoint(path, "merged", tmp_path / "merged", dtype="float32")
    assert os.listdir(tmp_path) in (["peft", "merged"], ["merged", "peft"])
    assert not [name for name in os.listdir(merged) if name.startswith("adapter")]
    wanted = logits(PeftModel.from_pretrained(plain(model_dir()), peft))
    torch.testing.assert_close(logits(plain(merged)), wanted, **SAME)
    assert (wanted - logits(plain(model_dir()))).abs().max() > 0.01
    text = "Once upon a time"
    assert AutoTokenizer.from_pretrained(merged)(text) == AutoTokenizer.from_pretrained(model_dir())(text)


def test_a_merged_model_is_stored_as_its_base_is(service, train, tmp_path):
    folder = service.export_checkpoint(train().save_state("x").result().path, "merged", tmp_path / "out")
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype
    assert stored == AutoModelForCausalLM.from_pretrained(model_dir(), dtype="auto").dtype


def test_an_export_that_cannot_be_is_refused_and_leaves_nothing(service, train, tmp_path):
    path = train().save_state("x").result().path
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(farstep.InvalidInputError) as caught:
        service.export_checkpoint(path, "gguf", tmp_path / "out")
    assert caught.value.field == "format"
    with pytest.raises(farstep.InvalidInputError) as caught:
        service.export_checkpoint(path, "peft", tmp_path / "full")
    assert caught.value.field == "out_dir"
    with pytest.raises(farstep.NotFoundError):
        service.export_checkpoint(path + "-other", "peft", tmp_path / "out")
    with pytest.raises(farstep.FarstepError, match=r"cannot be merged: .*neither a folder nor a model"):
        service.export_checkpoint(path, "merged", tmp_path / "out", base_model=str(tmp_path / "nothing"))
    assert os.listdir(tmp_path) == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "mine"


@pytest.fixture
def adapter(service, train, tmp_path):
    """A folder as peft writes it, with an alpha and layers of its own."""
    trainer = train(alpha=16.0, train_mlp=False)
    folder = service.export_checkpoint(trainer.save_state("x").result().path, "peft", tmp_path / "adapter")
    plain_peft = PeftModel.from_pretrained(plain(model_dir()), folder)
    plain_peft.save_pretrained(tmp_path / "from-peft", save_embedding_layers=False)  # else it asks the hub
    return tmp_path / "from-peft"


def test_an_adapter_of_plain_peft_is_trained_on_and_sampled_from(service, adapter):
    imported = service.import_adapter(adapter, "theirs", base_model="farstep/tiny")
    described = service.list_checkpoints(imported.path.split(":")[2].split("/")[0])
    assert sorted(found.path for found in described) == sorted([imported.path, imported.sampler_path])
    datum = farstep.Datum.from_prompt_completion([5, 6, 7, 8], [9, 10, 11])
    trainer = service.create_training_client_from_state(imported.path)
    assert trainer.step == 0
    ours = trainer.forward([datum]).result().loss_fn_outputs[0]["logprobs"].to_numpy()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(plain(model_dir()), adapter)(ids).logits.log_softmax(-1)[0]
    wanted = theirs[range(3, 6), [9, 10, 11]]
    torch.testing.assert_close(torch.tensor(ours)[3:6], wanted, rtol=1e-4, atol=1e-4)
    trainer.forward_backward([datum])
    assert trainer.optim_step(farstep.AdamParams()).result().metrics["step"] == 1
    with service.create_sampling_client(model_path=imported.sampler_path) as sampler:
        logprobs = sampler.compute_logprobs(farstep.ModelInput.from_ints([5, 6, 7, 8, 9, 10, 11])).result()
        assert logprobs[4:] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_what_is_no_adapter_of_the_model_is_refused_by_name(service, adapter, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(tensors))

    def variant(label, *, settings=None, weights=None):
        folder = tmp_path / label
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config | (settings or {})))
        save_file(tensors | (weights or {}), folder / "adapter_model.safetensors")
        return folder

    for folder, field in (
        (variant("nan", weights={name: torch.full_like(tensors[name], float("nan"))}), name),
        (variant("shape", weights={name: torch.zeros(4, 3)}), name),
        (variant("odd", weights={"base_model.model.other.lora_A.weight": torch.zeros(4, 3)}), "base_model.model.other"),
        (variant("rank", settings={"r": 5}), "lora_A"),
        (variant("setting", settings={"alora_invocation_tokens": [1]}), "alora_invocation_tokens"),
    ):
        with pytest.raises(farstep.RemoteOpError) as caught:
            service.import_adapter(folder, base_model="farstep/tiny")
        assert field in str(caught.value), folder
    for folder, said in (
        (variant("kind", settings={"peft_type": "IA3"}), "no LoRA"),
        (tmp_path, "has no adapter_config.json"),
    ):
        with pytest.raises(farstep.InvalidInputError, match=said):
            service.import_adapter(folder, base_model="farstep/tiny")
    broken = variant("broken")
    (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(farstep.InvalidInputError, match="not a safetensors file"):
        service.import_adapter(broken)
    (broken / "adapter_model.safetensors").rename(broken / "adapter_model.bin")
    with pytest.raises(farstep.InvalidInputError, match="pickle"):
        service.import_adapter(broken)
    with pytest.raises(farstep.InvalidInputError, match="base_model"):
        service.import_adapter(variant("other"), base_model="someone/else")


def test_an_adapter_goes_to_the_hub_as_peft_s_files(service, train, monkeypatch):
    calls = []

    class Hub:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append((repo_id, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append((repo_id, sorted(os.listdir(folder_path)), commit_message))
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    trainer = train()
    path = trainer.save_weights_for_sampler("x").result().path
    assert service.push_to_hub(path, "me/mine", token="t") == "https://hub/me/mine"
    files = ["adapter_config.json", "adapter_model.safetensors"]
    told = f"Upload {trainer.run_id}/sampler_weights/x"
    assert calls == [("token", "t"), ("me/mine", True, True), ("me/mine", files, told)]


def test_trainer_and_sampler_share_a_bucket(monkeypatch, tmp_path):
    """Saved by one trainer, sampled from by its sampler, gone on with by another trainer; published policies, too."""
    monkeypatch.setenv("FARSTEP_API_KEY", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datum = farstep.Datum.from_prompt_completion([5, 6, 7, 8], [9, 10, 11])
    prompt = farstep.ModelInput.from_ints([5, 6, 7, 8])
    with s3_server() as url:
        place = f"s3://{new_bucket()}/checkpoints"
        with (
            trainer_and_sampler(place) as (trainer, sampler),
            farstep.ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url) as service,
        ):
            run = service.create_lora_training_client("farstep/tiny", rank=4, seed=1)
            run.forward_backward([datum])
            run.optim_step(farstep.AdamParams(learning_rate=1e-2)).result()
            path = run.save_state("half").result().path
            with pytest.raises(farstep.RemoteOpError, match="half exists"):
                run.save_state("half").result()
            policy = run.save_weights_for_sampler("policy").result()
            with service.create_sampling_client(model_path=policy.path) as client:
                named = client.compute_logprobs(prompt).result()
            client = run.save_weights_and_get_sampling_client()
            assert client.compute_logprobs(prompt).result() == named
            assert client.policy_version == policy.policy_version + 1
            archive = service.get_checkpoint_archive_url(path)
            assert all(file.url.startswith(url) for file in archive.files)
            exported = service.export_checkpoint(path, "peft", tmp_path / "out")
            assert sorted(os.listdir(exported)) == ["adapter_config.json", "adapter_model.safetensors"]
            run.forward_backward([datum])
            straight = run.forward([datum]).result().loss_fn_outputs[0]["logprobs"].tolist()
        with (
            running("farstep_worker", "--model", "farstep/tiny", "--store", place) as other,
            farstep.ServiceClient.local(trainer_url=other.url, sampler_url=sampler.url) as service,
        ):
            again = service.create_training_client_from_state_with_optimizer(path)
            assert again.forward([datum]).result().loss_fn_outputs[0]["logprobs"].tolist() == straight
            service.delete_checkpoint(path)
            kept = [found.path for found in service.list_checkpoints(run.run_id)]
            assert kept == [policy.path]
