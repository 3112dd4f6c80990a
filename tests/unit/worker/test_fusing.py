"""Small passes of several runs in one batch give what each gives alone, bit for bit, failures included."""

import dataclasses

import numpy as np
import pytest
import torch

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.blocks import active_blocks
from farstep_proto.loss_table import LOSS_TABLE
from farstep_worker import fusing as fusing_module
from farstep_worker.executor import Executor
from farstep_worker.fusing import MAX_TOKENS, Fusing, can_share, is_same
from farstep_worker.gradients import run_pass
from farstep_worker.phases import Phases
from farstep_worker.submission import Skip
from tests.unit.worker.test_executor import ADAM, failed, snapshot, succeeded

LENGTHS = (20, 12, 3, 9)


@pytest.fixture
def executor(layers, tmp_path):
    return Executor(layers, CheckpointStore(tmp_path / "store"), token_budget=128, fuse_runs=True)


@pytest.fixture
def together(executor, make_run, monkeypatch):
    """Executes passes of several runs together, and says whether they were fused."""

    def go(calls, **spec):
        for index in range(len(calls)):
            if f"run-{index}" not in executor.runs:
                make_run(f"run-{index}", seed=index, warm=True, **spec)
        return executor.execute_together([(f"run-{index}", call) for index, call in enumerate(calls)])

    return go


@pytest.fixture
def alone(layers, tmp_path, executor):
    """The same runs, each in an executor where nothing is fused."""
    separate = Executor(layers, CheckpointStore(tmp_path / "alone"), token_budget=128)

    def go(run_id, call):
        if run_id not in separate.runs:
            run = separate.create_run(executor.runs[run_id].config)
            generator = torch.Generator().manual_seed(run.config.seed)
            with torch.no_grad():
                for parameter in run.adapter.parameters():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return separate.execute(run_id, call), separate.runs[run_id]

    return go


def same_run(one, other):
    a, b = snapshot(one), snapshot(other)
    gradients = zip(a[0] or [], b[0] or [], strict=True)
    return a[1:] == b[1:] and all(torch.equal(x, y) for x, y in gradients)


@pytest.mark.parametrize("loss_fn", sorted(LOSS_TABLE.keys() - {"value"}))
@pytest.mark.parametrize("backward", [True, False])
def test_every_loss_gives_what_it_gives_alone(executor, together, alone, make_pass, loss_fn, backward):
    calls = [make_pass(loss_fn, lengths=LENGTHS, seed=seed, backward=backward) for seed in range(3)]
    for expected in (False, True, True):  # the first time both ways
        outcomes = together(calls)
        assert [outcome.is_fused for outcome in outcomes] == [expected] * 3
        for index, (call, outcome) in enumerate(zip(calls, outcomes, strict=True)):
            other, run = alone(f"run-{index}", call)
            assert succeeded(outcome) == succeeded(other)
            assert same_run(executor.runs[f"run-{index}"], run)


def test_training_of_runs_that_differ_goes_as_alone(executor, make_run, alone, make_pass):
    """Ranks, layers, scalings, sizes of batches and losses."""
    make_run("run-0", seed=0, warm=True, rank=2, train_unembed=True)
    make_run("run-1", seed=1, warm=True, rank=8, alpha=32.0)
    make_run("run-2", seed=2, warm=True, train_mlp=False)
    make_run("run-3", seed=3, warm=True, target_modules=("q_proj",), dropout=0.0)
    was_fused = []
    for step in range(4):
        calls = [
            make_pass("ppo", lengths=(20, 7), seed=step),
            make_pass(lengths=(5, 20, 20), seed=step + 10),
            make_pass("dpo", lengths=LENGTHS, seed=step + 20, config={"normalizer": 3.0}),
            make_pass(lengths=(20,), seed=step + 30),
        ]
        outcomes = executor.execute_together([(f"run-{i}", call) for i, call in enumerate(calls)])
        was_fused.append(all(outcome.is_fused for outcome in outcomes))
        for i, (call, outcome) in enumerate(zip(calls, outcomes, strict=True)):
            other, run = alone(f"run-{i}", call)
            assert succeeded(outcome) == succeeded(other)
            assert same_run(executor.runs[f"run-{i}"], run)
            executor.execute(f"run-{i}", ADAM)
            alone(f"run-{i}", ADAM)
    assert was_fused == [False, True, True, True]


@pytest.mark.parametrize("key", ["logprobs", "advantages"])
def test_a_run_that_fails_fails_alone(executor, together, alone, make_pass, key):
    good = [make_pass("importance_sampling", lengths=LENGTHS, seed=seed) for seed in range(3)]
    together(good)
    bad = make_pass("importance_sampling", lengths=LENGTHS, seed=1)
    bad.examples[2].inputs["logprobs"][:] = -1e30 if key == "logprobs" else -60
    bad.examples[2].inputs["advantages"][:] = 1e30
    before = snapshot(executor.runs["run-1"])
    outcomes = together([good[0], bad, good[2]])
    assert [outcome.is_fused for outcome in outcomes] == [True] * 3
    error = failed(outcomes[1])
    assert error == failed(alone("run-1", bad)[0])
    assert error.error_class == "NonFiniteError"
    after = snapshot(executor.runs["run-1"])
    assert after[1:] == before[1:]
    assert all(torch.equal(a, b) for a, b in zip(after[0], before[0], strict=True))
    for index in (0, 2):
        for call in (good[index], good[index]):
            other, run = alone(f"run-{index}", call)
        assert succeeded(outcomes[index]) == succeeded(other)
        assert same_run(executor.runs[f"run-{index}"], run)


def test_a_shape_whose_numbers_would_differ_is_never_fused(executor, together, alone, make_pass, monkeypatch):
    real = fusing_module.run_together

    def slightly_off(*args, **kwargs):
        results = real(*args, **kwargs)
        results[1].gradients[3].view(-1)[0] = torch.nextafter(results[1].gradients[3].view(-1)[0], torch.tensor(9.0))
        return results

    monkeypatch.setattr("farstep_worker.executor.run_together", slightly_off)
    calls = [make_pass(lengths=LENGTHS, seed=seed) for seed in range(3)]
    for _ in range(3):
        outcomes = together(calls)
        assert not any(outcome.is_fused for outcome in outcomes)
        for index, (call, outcome) in enumerate(zip(calls, outcomes, strict=True)):
            other, run = alone(f"run-{index}", call)
            assert succeeded(outcome) == succeeded(other)
            assert same_run(executor.runs[f"run-{index}"], run)
    assert list(executor.fusing._verdicts.values()) == [False]


def test_a_mistake_in_fusing_costs_time_and_nothing_else(together, make_pass, monkeypatch, caplog):
    monkeypatch.setattr("farstep_worker.executor.run_together", lambda *args, **kwargs: 1 / 0)
    for outcome in together([make_pass(lengths=LENGTHS, seed=seed) for seed in range(2)]):
        succeeded(outcome)
    assert "computed one by one: division by zero" in caplog.text


def test_which_passes_share_a_batch(executor, make_run, make_pass):
    fusing = executor.fusing
    small = make_pass(lengths=LENGTHS)
    assert fusing.joins(small, small)
    assert fusing.joins(make_pass("ppo", lengths=(20,)), small)
    for other in (
        make_pass(lengths=(21,)),
        make_pass(lengths=LENGTHS, backward=False),
        dataclasses.replace(small, backward=False, adapter="base"),
        make_pass(lengths=(20,) * (MAX_TOKENS // 20 + 1)),
        ADAM,
        Skip(),
    ):
        assert not fusing.joins(other, small)
        assert not fusing.joins(small, other)
    plain, other = make_run("plain"), make_run("other")
    draws = make_run("draws", dropout=0.1)
    assert can_share(plain.adapter, small, token_budget=128)
    assert not can_share(plain.adapter, small, token_budget=40)  # two micro-batches
    assert not can_share(draws.adapter, small, token_budget=128)
    assert can_share(draws.adapter, make_pass(lengths=LENGTHS, backward=False), token_budget=128)
    assert fusing.pays([(plain.adapter, small)]) is False
    assert fusing.pays([(plain.adapter, small), (other.adapter, small)]) is None
    assert not Fusing.of(executor._layers, is_on=False).joins(small, small)


@pytest.mark.parametrize("spec", [{"dropout": 0.3}, {"use_dora": True}, {"value_head": True}])
def test_a_run_that_is_not_plain_is_computed_alone_and_holds_up_nobody(executor, together, make_run, make_pass, spec):
    make_run("run-1", seed=1, **spec)
    calls = [make_pass(lengths=LENGTHS, seed=seed) for seed in range(3)]
    for expected in (False, True):
        outcomes = together(calls)
        assert [outcome.is_fused for outcome in outcomes] == [expected, False, expected]
        assert all(succeeded(outcome) for outcome in outcomes)


def test_ever_new_shapes_are_not_tried_for_ever(executor, make_run, make_pass):
    a, b = make_run("a").adapter, make_run("b").adapter
    tried = 0
    for length in range(1, 101):
        members = [(a, make_pass(lengths=(length,))), (b, make_pass(lengths=(length,)))]
        if executor.fusing.pays(members) is None:
            tried += 1
            executor.fusing.learn(members, [0], [0])
    assert tried == 32
    for _ in range(4):
        assert executor.fusing.pays([(a, make_pass(lengths=(1,))), (b, make_pass(lengths=(1,)))])
    assert executor.fusing.pays(members) is None


def test_blocks_agree_with_an_independent_reference(layers, make_run, make_pass):
    """Gradients of both adapters by plain products, W + s·B·A, in float64: up to rounding of the fp32 ones."""
    runs = [make_run("a", seed=1, warm=True, rank=2), make_run("b", seed=2, warm=True, rank=8, alpha=4.0)]
    linear = layers.linears[0]
    x_BTI = torch.randn(3, 5, linear.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out_BTO = torch.randn(3, 5, linear.out_features, generator=torch.Generator().manual_seed(1))
    with active_blocks(layers, [run.adapter for run in runs], [5, 10]):
        loss = (linear(x_BTI) * out_BTO).sum()
    pairs = [run.adapter.weights[0] for run in runs]
    given = torch.autograd.grad(loss, [x_BTI, *(matrix for w in pairs for matrix in (w.a, w.b))])
    x = x_BTI.detach().double().requires_grad_()
    matrices = [matrix.detach().double().requires_grad_() for w in pairs for matrix in (w.a, w.b)]
    weights = [linear.weight.double() + run.adapter.spec.scaling * b @ a for run, a, b in
               zip(runs, matrices[::2], matrices[1::2], strict=True)]  # fmt: skip
    outputs = torch.cat([x[:1] @ weights[0].T, x[1:] @ weights[1].T])
    wanted = torch.autograd.grad((outputs * out_BTO.double()).sum(), [x, *matrices])
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


def test_sameness_is_to_the_bit(executor, make_run, make_pass):
    run = make_run(warm=True)
    call = make_pass(lengths=LENGTHS)
    result = run_pass(run.adapter, call, token_budget=128, dropout_seed=0)
    again = run_pass(run.adapter, call, token_budget=128, dropout_seed=0, phases=Phases())
    assert is_same(result, again)
    again.gradients[0].view(-1)[0] *= -1 if again.gradients[0].view(-1)[0] else 1
    assert not is_same(result, again)
    other = dataclasses.replace(result, outputs=[np.nextafter(array, np.float32(1)) for array in result.outputs])
    assert not is_same(result, other)
    assert not is_same(result, dataclasses.replace(result, gradients=None))
