"""Checkpoints: bit-exact going on, in this process and in a new one; refusals that name both sides."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.embedded import model_dir
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.names import CheckpointPath
from farstep_worker import checkpoint
from farstep_worker.submission import AdamSettings, LoadState, Publish, SaveState
from tests.unit.worker import resume

ADAM = AdamSettings(5e-3, 0.9, 0.95, 1e-8, 0.01, 1.0)
PATH = CheckpointPath("run", "weights", "mid")


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "store")


@pytest.fixture
def train(executor, make_pass):
    def steps(run_id, numbers):
        for number in numbers:
            for call in (make_pass(seed=number), make_pass("ppo", seed=number), ADAM):
                operation = executor.execute(run_id, call).operation
                assert not operation.HasField("error"), operation.error

    return steps


def save(store, run, name="mid"):
    return checkpoint.save_state(store, run, SaveState(name, {"note": "x"}, None, overwrite=False))


def weights(run):
    return run.adapter.to_bytes()


@pytest.mark.parametrize("spec", [{}, {"use_dora": True, "use_rslora": True}])
def test_going_on_from_a_checkpoint_is_going_on(store, make_run, train, spec):
    straight, first = (make_run(run_id, dropout=0.3, **spec) for run_id in ("straight", "run"))
    second = make_run("x", seed=5, **spec)
    second.adapter.spec = first.adapter.spec
    train("straight", range(10))
    train("run", range(5))
    save(store, first)
    checkpoint.load_state(store, second, LoadState(PATH, optimizer=True))
    assert (second.step, second.random) == (first.step, first.random)
    train("x", range(5, 10))
    assert weights(second) == weights(straight)
    assert second.optimizer.state_bytes() == straight.optimizer.state_bytes()


def test_going_on_in_a_new_process_is_bit_identical(executor, tmp_path):
    run = resume.new_run(executor, seed=3)
    resume.train(executor, range(5))
    checkpoint.save_state(CheckpointStore(tmp_path / "store"), run, SaveState("middle", {}, None, overwrite=False))
    resume.train(executor, range(5, 10))
    command = [sys.executable, "-m", "tests.unit.worker.resume", str(tmp_path / "store")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == resume.state_of(run)


def test_weights_alone_begin_a_new_count_with_an_empty_optimizer(store, make_run, train):
    run, other = make_run("run"), make_run("other", seed=5)
    train("run", range(2))
    save(store, run)
    train("other", range(1))
    random = other.random
    checkpoint.load_state(store, other, LoadState(PATH, optimizer=False))
    assert weights(other) == weights(run)
    assert (other.step, other.random, other.gradients) == (0, random, None)
    assert other.optimizer.state_bytes() != run.optimizer.state_bytes()


def test_collected_gradients_are_dropped(store, make_run, train, executor, make_pass):
    run = make_run("run")
    save(store, run)
    executor.execute("run", make_pass())
    checkpoint.load_state(store, run, LoadState(PATH, optimizer=True))
    assert run.gradients is None


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"rank": 8}, "rank 4, the run has 8"),
        ({"rank": 4, "alpha": 16.0}, "alpha 4.0, the run has 16.0"),
        ({"rank": 4, "use_rslora": True}, "use_rslora False, the run has True"),
        ({"rank": 4, "use_dora": True}, "use_dora False, the run has True"),
        ({"rank": 4, "train_mlp": False}, "adapts .*, the run adapts"),
    ],
)
def test_an_adapter_of_another_form_is_refused_and_nothing_changes(store, make_run, train, spec, complaint):
    save(store, make_run("run"))
    other = make_run("other", **spec)
    train("other", range(1))
    before = (weights(other), other.optimizer.state_bytes(), other.step, other.random)
    with pytest.raises(InvalidInput, match=complaint):
        checkpoint.load_state(store, other, LoadState(PATH, optimizer=True))
    assert (weights(other), other.optimizer.state_bytes(), other.step, other.random) == before


def test_another_base_model_is_refused(store, make_run):
    run = make_run("run")
    files = run.adapter.files("someone/else")
    store.write(PATH, files, {"base_model": "someone/else"})
    with pytest.raises(InvalidInput, match="'someone/else', this trainer serves 'farstep/tiny'"):
        checkpoint.load_state(store, run, LoadState(PATH, optimizer=False))


def test_a_policy_checkpoint_gives_weights_but_no_optimizer(store, make_run):
    run, other = make_run("run", warm=True), make_run("other")
    path = checkpoint.save_policy(store, run, Publish("p", None), policy_version=7)
    assert store.manifest(path).meta["policy_version"] == 7
    checkpoint.load_state(store, other, LoadState(path, optimizer=False))
    assert weights(other) == weights(run)
    with pytest.raises(InvalidInput, match="no optimizer state"):
        checkpoint.load_state(store, other, LoadState(path, optimizer=True))


def test_a_version_number_never_goes_back_for_the_run_itself(store, make_run):
    run = make_run("run")
    run.policy_version = 5
    save(store, run)
    run.policy_version = 9
    checkpoint.load_state(store, run, LoadState(PATH, optimizer=True))
    assert run.policy_version == 9
    again, other = make_run("run"), make_run("other")
    for target in (again, other):
        checkpoint.load_state(store, target, LoadState(PATH, optimizer=True))
    assert (again.policy_version, other.policy_version) == (5, 0)


def test_a_missing_checkpoint(store, make_run):
    with pytest.raises(NotFound):
        checkpoint.load_state(store, make_run("run"), LoadState(PATH, optimizer=False))


def test_the_manifest_says_what_it_is(store, make_run, train):
    run = make_run("run", dropout=0.1)
    train("run", range(1))
    meta = store.manifest(save(store, run)).meta
    assert meta["base_model"] == "farstep/tiny"
    assert (meta["lora"]["rank"], meta["lora"]["dropout"]) == (4, 0.1)
    assert (meta["step"], meta["seed"], meta["draws"], meta["target"]) == (1, 1, 2, "trainer")
    assert meta["metadata"] == {"note": "x"}


def test_plain_peft_loads_it_and_computes_the_same(store, make_run, make_pass, tmp_path):
    run = make_run("run", warm=True)
    folder = Path(store.file_path(save(store, run), "adapter_config.json")).parent
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32), folder)
    ids = torch.arange(3, 20)[None]
    layers = run.adapter.layers
    with torch.no_grad(), layers.active([run.adapter]):
        ours = layers.base.logits(layers.base.hidden_states(ids))
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, ours, rtol=1e-4, atol=1e-4)


def test_an_adapter_for_other_programs_is_peft_files_alone_and_no_policy(store, executor, make_run, make_pass):
    run = make_run("run", warm=True, value_head=True)
    store_of = executor.store
    saved = executor.execute("run", Publish("out", None, {"who": "me"}, is_external=True))
    path = CheckpointPath.parse(saved.operation.save_weights.path)
    assert (path.kind, saved.policy, saved.operation.save_weights.HasField("policy_version")) == (
        "external_weights",
        None,
        False,
    )
    manifest, files = store_of.read(path)
    assert sorted(files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert manifest.meta["metadata"] == {"who": "me"}
    assert manifest.to_proto().target == "external"
    assert run.policy_version == 0


def test_a_project_loads_what_another_has_made_public(store, make_run):
    run, other = make_run("run", warm=True), make_run("other")
    save(store, run)
    other.config = dataclasses.replace(other.config, project="beta")
    with pytest.raises(NotFound):
        checkpoint.load_state(store, other, LoadState(PATH, optimizer=False))
    store.set_public(PATH, True)
    checkpoint.load_state(store, other, LoadState(PATH, optimizer=False))
    assert weights(other) == weights(run)
    store.set_public(PATH, False)
    with pytest.raises(NotFound):
        checkpoint.load_state(store, other, LoadState(PATH, optimizer=False))
