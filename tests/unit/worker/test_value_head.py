"""A run with a value head: which steps touch what, and how it is kept."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from farstep_model.adapter import Adapter
from farstep_model.embedded import model_dir
from farstep_proto.errors import InvalidInput
from farstep_proto.names import CheckpointPath
from farstep_proto.tensors import tensor_from_proto
from farstep_worker import checkpoint
from farstep_worker.gradients import run_pass
from farstep_worker.submission import AdamSettings, LoadState, Publish, Reset, SaveState

ADAM = AdamSettings(5e-3, 0.9, 0.95, 1e-8, 0.01, 1.0)
PATH = CheckpointPath("run", "weights", "mid")
UNEMBED = {"target_modules": ("q_proj", "lm_head"), "value_head": True}


@pytest.fixture
def do(executor):
    def execute(*calls, run_id="run"):
        for call in calls:
            operation = executor.execute(run_id, call).operation
            assert not operation.HasField("error"), operation.error
        return operation

    return execute


def save(executor, run):
    return checkpoint.save_state(executor.store, run, SaveState("mid", {}, None, overwrite=False))


def weights(run, kind=""):
    named = zip(run.adapter.names(), run.adapter.parameters(), strict=True)
    return {name: parameter.detach().clone() for name, parameter in named if kind in name}


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def values_of(operation):
    return [tensor_from_proto(output.fields["values"]) for output in operation.forward_backward.loss_fn_outputs]


def moments(run, kind):
    return {name: tensor for name, tensor in load(run.optimizer.state_bytes()).items() if kind in name}


def test_a_step_of_the_policy_alone_leaves_the_head_alone(make_run, make_pass, do):
    """Neither weight decay nor old momentum moves it; and the adapter trains as in a run without a head."""
    run, plain = make_run(value_head=True), make_run("plain")
    for run_id in ("run", "plain"):
        do(make_pass("ppo"), ADAM, run_id=run_id)
    assert run.adapter.to_bytes() == plain.adapter.to_bytes()
    assert moments(run, "v_head") == {}
    do(make_pass("value"), ADAM)
    assert weights(run, "weight")["v_head.summary.weight"].any()
    before, moments_before = weights(run, "v_head"), moments(run, "v_head")
    do(make_pass("ppo", seed=2), ADAM)
    assert equal(weights(run, "v_head"), before)
    assert equal({k: v for k, v in moments(run, "v_head").items() if "step" not in k},
                 {k: v for k, v in moments_before.items() if "step" not in k})  # fmt: skip
    assert {moments(run, "v_head")[f"v_head.summary.{name}.step"].item() for name in ("weight", "bias")} == {1}


def test_a_step_of_values_alone_trains_head_and_adapter_but_not_the_output_layer(make_run, make_pass, do):
    run = make_run(**UNEMBED)
    do(make_pass("ppo"), ADAM)
    before = weights(run)
    do(make_pass("value"), ADAM)  # the first moves the head, from which the adapter hears in the second
    do(make_pass("value"), ADAM)
    after = weights(run)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lm_head" not in name}


def test_the_gradients_of_both_add_up_in_either_order(make_run, make_pass, do):
    run = make_run(warm=True, **UNEMBED)
    policy, value = make_pass("ppo"), make_pass("value", seed=1)
    alone = [run_pass(run.adapter, call, token_budget=64, dropout_seed=0).gradients for call in (policy, value)]
    for order in ((policy, value), (value, policy)):
        run.gradients = None
        do(*order)
        for name, found, one, other in zip(run.adapter.names(), run.gradients, *alone, strict=True):
            parts = [gradient for gradient in (one, other) if gradient is not None]
            assert len(parts) == (1 if "v_head" in name or "lm_head" in name else 2)
            torch.testing.assert_close(found, sum(parts))


def test_values_never_touch_the_output_layer(make_run, make_pass, do, layers):
    """Nor the vocabulary: memory does not depend on it."""
    make_run(value_head=True)
    hook = layers.base.model.get_output_embeddings().register_forward_pre_hook(lambda *_: pytest.fail("it was used"))
    try:
        do(make_pass("value"), make_pass("value", backward=False))
    finally:
        hook.remove()


def test_a_forward_pass_reads_values_at_every_position(make_run, make_pass, do):
    run = make_run(warm=True, value_head=True)
    call = make_pass("value", lengths=(5, 60, 3, 70), backward=False)
    for example in call.examples:
        example.inputs["target_tokens"][:] = 0
    base, expected = run.adapter.layers.base, []
    with torch.no_grad(), run.adapter.layers.active([run.adapter]):
        for example in call.examples:
            hidden_TD = base.hidden_states(torch.from_numpy(example.tokens.astype(np.int64))[None])[0]
            expected.append(run.adapter.value_head.values(hidden_TD).numpy())
    operation = do(call)
    for found, wanted in zip(values_of(operation), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    for example in call.examples[1:3]:
        example.inputs["weights"][:] = 0
    unweighted = do(call)
    for found, wanted in zip(values_of(unweighted), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    counted = unweighted.forward_backward.metrics["tokens:sum"]
    assert counted == sum(int((call.examples[i].inputs["weights"] != 0).sum()) for i in (0, 3))


def test_going_on_from_a_checkpoint_is_going_on(executor, make_run, make_pass, do):
    """Through steps of either kind and of both, so that head and adapter have taken unequal numbers of steps."""

    def train(run_id, steps):
        for step in steps:
            for loss_fn in (("ppo",), ("value",), ("value", "ppo"))[step % 3]:
                do(make_pass(loss_fn, seed=step), run_id=run_id)
            do(ADAM, run_id=run_id)

    spec = {**UNEMBED, "dropout": 0.3, "use_rslora": True}
    straight, first, second = make_run("straight", **spec), make_run("run", **spec), make_run("x", seed=5, **spec)
    train("straight", range(10))
    train("run", range(5))
    save(executor, first)
    checkpoint.load_state(executor.store, second, LoadState(PATH, optimizer=True))
    assert equal(weights(second), weights(first))
    train("x", range(5, 10))
    assert equal(weights(second), weights(straight))
    assert second.optimizer.state_bytes() == straight.optimizer.state_bytes()


def test_it_leaves_memory_and_comes_back_with_the_run(make_run, make_pass, do):
    """With gradients that are not there for every parameter, and moments that are not there yet."""
    spec = {**UNEMBED, "use_dora": True}
    stays, goes = make_run("stays", **spec), make_run("goes", **spec)
    for loss_fn in ("ppo", "value", "ppo"):
        for run_id in ("stays", "goes"):
            do(make_pass(loss_fn), run_id=run_id)
        given = goes.go_away()
        assert goes.num_bytes == 0
        assert sum(tensor.nbytes for tensor in given.values()) == stays.num_bytes
        goes.come_back({name: tensor.clone() for name, tensor in given.items()})
        for run_id in ("stays", "goes"):
            do(ADAM, run_id=run_id)
        assert equal(weights(goes), weights(stays))
    assert goes.optimizer.state_bytes() == stays.optimizer.state_bytes()


def test_the_start_has_the_head_that_it_had(executor, make_run, make_pass, do):
    run, other, third = (make_run(run_id, value_head=True) for run_id in ("run", "other", "third"))
    look = dataclasses.replace(make_pass("value", backward=False), adapter="start")
    do(make_pass("value"), ADAM, make_pass("value"), ADAM)
    assert not any(values.any() for values in values_of(do(look)))  # a fresh head says 0
    save(executor, run)
    trained = values_of(do(dataclasses.replace(look, adapter="current")))
    assert all(values.any() for values in trained)
    do(LoadState(PATH, optimizer=False), make_pass("value"), ADAM, run_id="other")
    again = SaveState("again", {}, None, overwrite=False)
    do(again, run_id="other")
    do(LoadState(CheckpointPath("other", "weights", "again"), optimizer=True), run_id="third")
    for run_id in ("other", "third"):
        for found, wanted in zip(values_of(do(look, run_id=run_id)), trained, strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert equal(weights(third), weights(other))
    do(Reset(2), run_id="third")
    assert not any(tensor.any() for tensor in weights(third, "v_head").values())
    assert not any(values.any() for values in values_of(do(look, run_id="third")))


def test_weights_alone_come_with_or_without_a_head(executor, make_run, make_pass, do):
    """A checkpoint's head goes to a run that has one; a run's head is a fresh one where the checkpoint has none."""
    critic, policy = make_run("run", value_head=True), make_run("policy")
    do(make_pass("value"), make_pass(), ADAM)
    do(make_pass(), ADAM, run_id="policy")
    save(executor, critic)
    other = checkpoint.save_state(executor.store, policy, SaveState("p", {}, None, overwrite=False))
    do(LoadState(PATH, optimizer=False), run_id="policy")
    assert policy.adapter.value_head is None
    assert policy.adapter.to_bytes() == critic.adapter.to_bytes()
    do(LoadState(other, optimizer=False))
    assert not any(tensor.any() for tensor in weights(critic, "v_head").values())
    do(make_pass("value"), ADAM)


@pytest.mark.parametrize("has_head", [True, False])
def test_with_the_optimizer_both_have_one_or_neither(executor, make_run, make_pass, do, has_head):
    run, other = make_run("run", value_head=has_head), make_run("other", value_head=not has_head)
    do(make_pass(), ADAM)
    do(make_pass(seed=3), ADAM, run_id="other")
    save(executor, run)
    before = weights(other), other.optimizer.state_bytes(), other.step
    with pytest.raises(InvalidInput, match=r"has a value head, .* has none") as caught:
        checkpoint.load_state(executor.store, other, LoadState(PATH, optimizer=True))
    assert caught.value.field == "path"
    assert equal(weights(other), before[0])
    assert (other.optimizer.state_bytes(), other.step) == before[1:]


def test_it_is_kept_apart_from_pefts_files_and_from_policies(executor, make_run, make_pass, do):
    run = make_run(warm=True, value_head=True)
    path = save(executor, run)
    manifest = executor.store.manifest(path)
    assert manifest.meta["lora"]["value_head"] is True
    assert set(manifest.files) == {
        "adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "value_head.safetensors"
    }  # fmt: skip
    folder = Path(executor.store.file_path(path, "adapter_config.json")).parent
    base = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, folder)
    head = torch.nn.Linear(base.config.hidden_size, 1)
    kept = load((folder / "value_head.safetensors").read_bytes())
    head.load_state_dict({name.removeprefix("v_head.summary."): tensor for name, tensor in kept.items()})
    call = make_pass("value", backward=False)
    with torch.no_grad():
        ids = torch.from_numpy(call.examples[1].tokens.astype(np.int64))[None]
        expected = head(plain(ids, output_hidden_states=True).hidden_states[-1])[0, :, 0].numpy()
    asked = call.examples[1].inputs["target_tokens"] != -100
    np.testing.assert_allclose(values_of(do(call))[1], np.where(asked, expected, 0), atol=1e-5)

    outcome = executor.execute("run", Publish("p", None))
    assert Adapter.from_bytes(run.adapter.layers, outcome.policy.data).value_head is None
    assert not [name for name in load(outcome.policy.data) if "v_head" in name]
    policy = executor.store.manifest(CheckpointPath("run", "sampler_weights", "p"))
    assert policy.meta["lora"]["value_head"] is False
    assert set(policy.files) == {"adapter_model.safetensors", "adapter_config.json"}
