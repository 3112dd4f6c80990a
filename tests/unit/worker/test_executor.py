"""What each verb does to a run, and what a failure leaves behind: nothing."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from farstep_model.adapter import Adapter
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import operations_pb2
from farstep_worker.submission import AdamSettings, LoadState, Publish, Reset, SaveState, Skip

ADAM = AdamSettings(1e-2, 0.9, 0.95, 1e-8, 0.0, 0.0)


def succeeded(outcome):
    assert outcome.operation.state == operations_pb2.OPERATION_STATE_SUCCEEDED, outcome.operation.error
    return outcome.operation


def failed(outcome):
    assert outcome.operation.state == operations_pb2.OPERATION_STATE_FAILED
    return outcome.operation.error


def snapshot(run):
    gradients = None if run.gradients is None else [g.clone() for g in run.gradients]
    return gradients, run.adapter.to_bytes(), run.optimizer.state_bytes(), run.step, run.random, run.policy_version


def same(a, b):
    if (a[0] is None) != (b[0] is None):
        return False
    return a[1:] == b[1:] and (a[0] is None or all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)))


def test_training_lowers_the_loss(executor, make_run, make_pass):
    run = make_run()
    losses = []
    for _ in range(8):
        output = succeeded(executor.execute("run", make_pass())).forward_backward
        losses.append(output.loss)
        metrics = succeeded(executor.execute("run", ADAM)).optim_step.metrics
    assert losses[-1] < 0.8 * losses[0]
    assert output.loss == pytest.approx(output.metrics["loss:sum"] / output.metrics["tokens:sum"])
    assert metrics["step"] == run.step == 8
    assert metrics["learning_rate"] == 1e-2
    assert metrics["grad_norm"] > 0


def test_forward_leaves_the_run_as_it_was(executor, make_run, make_pass):
    run = make_run(warm=True, dropout=0.2)
    executor.execute("run", make_pass())
    before = snapshot(run)
    succeeded(executor.execute("run", make_pass(backward=False, seed=3)))
    assert same(before, snapshot(run))


@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_failed_pass_leaves_the_run_as_it_was(executor, make_run, make_pass, with_gradients):
    run = make_run(warm=True, dropout=0.2)
    if with_gradients:
        succeeded(executor.execute("run", make_pass()))
    before = snapshot(run)
    bad = make_pass("importance_sampling", lengths=(60, 60, 60, 3))  # the bad one comes last, in another micro-batch
    bad.examples[3].inputs["logprobs"][:] = -1e30
    bad.examples[3].inputs["advantages"][:] = 1
    error = failed(executor.execute("run", bad))
    assert (error.error_class, error.field) == ("NonFiniteError", "data[3]")
    assert same(before, snapshot(run))
    succeeded(executor.execute("run", make_pass()))


def test_a_step_without_gradient_says_so(executor, make_run, make_pass):
    run = make_run()
    assert failed(executor.execute("run", ADAM)).error_class == "NoGradientError"
    succeeded(executor.execute("run", make_pass(backward=False)))
    assert failed(executor.execute("run", ADAM)).error_class == "NoGradientError"
    succeeded(executor.execute("run", make_pass()))
    succeeded(executor.execute("run", ADAM))
    assert "forward_backward" in failed(executor.execute("run", ADAM)).hint
    assert run.step == 1


def test_runs_do_not_see_each_other(executor, make_run, make_pass):
    alone = make_run("alone")
    together = make_run("together")
    make_run("other", seed=9, rank=2)
    for seed in range(3):
        for run_id in ("alone", "together", "other"):
            succeeded(executor.execute(run_id, make_pass(seed=seed + 10 * (run_id == "other"))))
            succeeded(executor.execute(run_id, ADAM))
    assert alone.adapter.to_bytes() == together.adapter.to_bytes()
    assert executor.runs["other"].adapter.to_bytes() != alone.adapter.to_bytes()


def test_publishing_counts_up_once_each_and_gives_the_weights(executor, make_run, make_pass):
    run = make_run(warm=True)
    first = executor.execute("run", Publish("", None))
    assert succeeded(first).save_weights.policy_version == 1
    assert succeeded(first).save_weights.path == ""
    assert first.policy.version == 1
    loaded = Adapter.from_bytes(run.adapter.layers, first.policy.data)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), run.adapter.parameters(), strict=True))
    second = executor.execute("run", Publish("a", None))
    assert succeeded(second).save_weights.path == "bt://loops:run/sampler_weights/a"
    taken = executor.execute("run", Publish("a", None))
    assert failed(taken).error_class == "ConflictError"
    assert taken.policy is None
    assert run.policy_version == 2


def test_reset_begins_afresh_and_keeps_the_policy_version(executor, make_run, make_pass):
    run = make_run(warm=True, rank=4, alpha=8.0)
    executor.execute("run", make_pass())
    executor.execute("run", ADAM)
    executor.execute("run", make_pass())
    executor.execute("run", Publish("", None))
    succeeded(executor.execute("run", Reset(2)))
    assert (run.adapter.spec.rank, run.adapter.spec.scaling) == (2, 2.0)
    assert (run.step, run.policy_version, run.gradients) == (0, 1, None)
    first = run.adapter.to_bytes()
    assert failed(executor.execute("run", ADAM)).error_class == "NoGradientError"
    succeeded(executor.execute("run", make_pass()))
    assert succeeded(executor.execute("run", ADAM)).optim_step.metrics["step"] == 1
    executor.execute("run", Reset(2))
    assert run.adapter.to_bytes() != first  # new first weights each time


def logprobs_of(executor, call, adapter="current", run_id="run"):
    operation = succeeded(executor.execute(run_id, dataclasses.replace(call, backward=False, adapter=adapter)))
    outputs = operation.forward_backward.loss_fn_outputs
    return [output.fields["logprobs"].data for output in outputs]


def train(executor, make_pass, run_id="run"):
    succeeded(executor.execute(run_id, make_pass()))
    succeeded(executor.execute(run_id, ADAM))


def test_base_is_the_model_without_the_adapter_bit_for_bit(executor, make_run, make_pass):
    call = make_pass()
    make_run("fresh", seed=5)
    plain = logprobs_of(executor, call, run_id="fresh")
    run = make_run(warm=True)
    succeeded(executor.execute("run", make_pass(seed=2)))
    before = snapshot(run)
    assert logprobs_of(executor, call, "base") == plain != logprobs_of(executor, call)
    assert same(before, snapshot(run))


def test_a_fresh_run_starts_as_the_base_model_and_stays_there(executor, make_run, make_pass):
    call = make_pass()
    run = make_run()
    plain = logprobs_of(executor, call, "base")
    train(executor, make_pass)
    assert logprobs_of(executor, call, "start") == plain != logprobs_of(executor, call)
    assert run.start_adapter is None  # no copy for what the base computes anyway
    succeeded(executor.execute("run", Reset(2)))
    assert logprobs_of(executor, call, "start") == plain


def test_weights_loaded_before_the_first_step_are_the_start(executor, make_run, make_pass):
    call = make_pass()
    make_run("origin")
    train(executor, make_pass, "origin")
    succeeded(executor.execute("origin", SaveState("one", {}, None, False)))
    loaded = logprobs_of(executor, call, run_id="origin")
    train(executor, make_pass, "origin")
    succeeded(executor.execute("origin", SaveState("two", {}, None, False)))
    one, two = (LoadState(CheckpointPath("origin", "weights", name), optimizer=False) for name in ("one", "two"))

    run = make_run("run", seed=3)
    succeeded(executor.execute("run", one))
    train(executor, make_pass)
    assert logprobs_of(executor, call, "start") == loaded != logprobs_of(executor, call)
    succeeded(executor.execute("run", two))  # in the middle of training: no new beginning
    assert logprobs_of(executor, call, "start") == loaded != logprobs_of(executor, call)
    succeeded(executor.execute("run", Reset(4)))
    assert run.start_adapter is None
    succeeded(executor.execute("run", two))
    assert logprobs_of(executor, call, "start") == logprobs_of(executor, call)


def test_the_start_goes_along_with_the_optimizer(executor, make_run, make_pass):
    """A resumed run goes on with the reference that it had."""
    call = make_pass()
    make_run("origin", warm=True)
    succeeded(executor.execute("origin", SaveState("warm", {}, None, False)))
    make_run("run", seed=3)
    succeeded(executor.execute("run", LoadState(CheckpointPath("origin", "weights", "warm"), optimizer=False)))
    start = logprobs_of(executor, call)
    train(executor, make_pass)
    succeeded(executor.execute("run", SaveState("later", {}, None, False)))
    resumed = make_run("resumed", seed=9)
    path = CheckpointPath("run", "weights", "later")
    succeeded(executor.execute("resumed", LoadState(path, optimizer=True)))
    assert logprobs_of(executor, call, "start", "resumed") == start != logprobs_of(executor, call, run_id="resumed")
    # Trained already: weights without their optimizer no longer move the beginning.
    succeeded(executor.execute("resumed", LoadState(path, optimizer=False)))
    assert logprobs_of(executor, call, "start", "resumed") == start
    # A run that began fresh brings that along, too.
    train(executor, make_pass, "origin")
    succeeded(executor.execute("origin", SaveState("trained", {}, None, False)))
    trained = LoadState(CheckpointPath("origin", "weights", "trained"), optimizer=True)
    succeeded(executor.execute("resumed", trained))
    assert resumed.start_adapter is None


def test_a_preference_loss_is_ln_2_a_pair_at_the_start(executor, make_run, make_pass):
    make_run(warm=True)
    succeeded(executor.execute("run", SaveState("warm", {}, None, False)))
    make_run("tuned", seed=4)
    succeeded(executor.execute("tuned", LoadState(CheckpointPath("run", "weights", "warm"), optimizer=False)))
    call = make_pass("dpo")
    targets = dataclasses.replace(make_pass(), backward=False, adapter="start")
    reference = succeeded(executor.execute("tuned", targets)).forward_backward.loss_fn_outputs
    for example, output in zip(call.examples, reference, strict=True):
        example.inputs["weights"][:] = 1
        example.inputs["ref_logprobs"][:] = np.frombuffer(output.fields["logprobs"].data, "<f4")
    output = succeeded(executor.execute("tuned", call)).forward_backward
    assert output.loss == pytest.approx(math.log(2), abs=1e-6)
    assert output.metrics["loss:sum"] == pytest.approx(2 * math.log(2), abs=1e-6)
    succeeded(executor.execute("tuned", ADAM))
    output = succeeded(executor.execute("tuned", call)).forward_backward
    assert output.loss < math.log(2)
    assert output.metrics["accuracy:mean"] == 1


def test_skip_does_nothing(executor, make_run):
    run = make_run()
    before = snapshot(run)
    assert succeeded(executor.execute("run", Skip())).WhichOneof("outcome") == "empty"
    assert same(before, snapshot(run))


def test_the_same_seed_gives_the_same_run(make_run):
    a, b, c = make_run("a"), make_run("b"), make_run("c", seed=2)
    assert a.adapter.to_bytes() == b.adapter.to_bytes() != c.adapter.to_bytes()


def test_lack_of_memory_says_what_to_lower(executor, make_run, make_pass, monkeypatch):
    make_run()

    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("farstep_worker.executor.run_pass", no_memory)
    error = failed(executor.execute("run", make_pass()))
    assert error.error_class == "OutOfMemoryError"
    assert "a lower --token-budget" in error.hint


def test_any_other_error_is_named_by_its_class_and_the_run_goes_on(executor, make_run, make_pass, monkeypatch):
    make_run()
    with monkeypatch.context() as patch:
        patch.setattr("farstep_worker.executor.run_pass", lambda *args, **kwargs: 1 / 0)
        assert failed(executor.execute("run", make_pass())).error_class == "ZeroDivisionError"
    succeeded(executor.execute("run", make_pass()))


def test_saving_twice_needs_overwrite(executor, make_run, make_pass):
    make_run()
    save = SaveState("a", {"note": "x"}, None, overwrite=False)
    path = succeeded(executor.execute("run", save)).save_weights.path
    assert path == "bt://loops:run/weights/a"
    assert failed(executor.execute("run", save)).error_class == "ConflictError"
    succeeded(executor.execute("run", dataclasses.replace(save, overwrite=True)))
    missing = LoadState(CheckpointPath("run", "weights", "none"), optimizer=False)
    assert failed(executor.execute("run", missing)).error_class == "NotFoundError"


def test_weights_that_grew_beyond_all_bounds_are_noticed(executor, make_run, make_pass):
    run = make_run()
    succeeded(executor.execute("run", make_pass()))
    succeeded(executor.execute("run", dataclasses.replace(ADAM, learning_rate=1e38)))
    error = failed(executor.execute("run", make_pass()))
    assert error.error_class == "NonFiniteError"
    assert math.isfinite(run.step)
    assert run.gradients is None
