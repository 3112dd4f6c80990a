"""Passes for which memory does not suffice: split, computed again, and right; or refused, and nothing lost."""

import dataclasses
import weakref

import pytest
import torch

from farstep_model import products
from farstep_proto.errors import ModelError
from farstep_worker.device import is_out_of_memory
from farstep_worker.gradients import run_pass
from farstep_worker.optim import Optimizer
from farstep_worker.submission import AdamSettings
from farstep_worker.token_budget import CALM_PASSES

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


def no_memory():
    return torch.OutOfMemoryError("CUDA out of memory")


class SmallMemory:
    """Products over more than `limit` tokens fail, forward or backward; `failures` counts them by number of tokens."""

    def __init__(self, monkeypatch, limit, *, backward=False, error=no_memory):
        self.limit, self.backward, self.error = limit, backward, error
        self.failures = []
        self.held = []
        self.product = products.product
        monkeypatch.setattr(products, "product", self)

    def __call__(self, x_NI, weight_OI, bias_O=None):
        is_backward = torch._C._current_graph_task_id() != -1
        assert all(tensor() is None for tensor in self.held), "tried again with the old tensors still there"
        if is_backward == self.backward and len(x_NI) > self.limit:
            self.failures.append(len(x_NI))
            self.held.append(weakref.ref(x_NI))
            raise self.error()
        return self.product(x_NI, weight_OI, bias_O)


def assert_same(result, expected):
    assert result.loss_sum == expected.loss_sum
    assert result.metrics == expected.metrics
    assert result.num_active == expected.num_active
    for a, b in zip(result.gradients, expected.gradients, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(result.outputs, expected.outputs, strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "error", [no_memory, lambda: RuntimeError(ALLOCATOR), MemoryError], ids=["cuda", "cpu", "python"]
)
def test_a_split_pass_has_the_numbers_of_one_planned_that_way(make_run, make_pass, monkeypatch, backward, error):
    adapter = make_run(warm=True).adapter
    call = make_pass("ppo", lengths=(8,) * 8)
    planned = run_pass(adapter, call, token_budget=16, dropout_seed=0)
    whole = run_pass(adapter, call, token_budget=64, dropout_seed=0)
    memory, told = SmallMemory(monkeypatch, 20, backward=backward, error=error), []
    split = run_pass(adapter, call, token_budget=64, dropout_seed=0, on_out_of_memory=told.append)
    assert told == [64, 32, 32]
    assert len(memory.failures) == 3
    assert_same(split, planned)
    # Nothing is counted twice: sums, normalisers and means are those of the undisturbed pass, within rounding.
    assert split.metrics == pytest.approx(whole.metrics, rel=1e-5)
    assert split.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)
    for a, b in zip(split.gradients, whole.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_split_pass_repeats_its_dropout(make_run, make_pass, monkeypatch):
    adapter = make_run(warm=True, dropout=0.5).adapter
    call = make_pass(lengths=(8,) * 4)
    planned = run_pass(adapter, call, token_budget=16, dropout_seed=3)
    whole = run_pass(adapter, call, token_budget=32, dropout_seed=3)
    assert planned.loss_sum != whole.loss_sum
    SmallMemory(monkeypatch, 20, backward=True)  # after all masks of the whole were drawn
    assert_same(run_pass(adapter, call, token_budget=32, dropout_seed=3), planned)


def test_lengths_of_all_kinds(make_run, make_pass, monkeypatch):
    adapter = make_run(warm=True).adapter
    call = make_pass("importance_sampling", lengths=(17, 1, 9, 4, 4, 12, 3, 1, 20))
    whole = run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    memory = SmallMemory(monkeypatch, 20)
    split = run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    assert memory.failures
    assert split.metrics == pytest.approx(whole.metrics, rel=1e-4)
    for a, b in zip(split.gradients, whole.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_pairs_stay_whole(make_run, make_pass, monkeypatch):
    adapter = make_run(warm=True).adapter
    call = make_pass("dpo", lengths=(8,) * 12)
    whole = run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    memory = SmallMemory(monkeypatch, 16)
    split = run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    assert memory.failures == [96, 48, 32, 48, 32]
    assert split.metrics["pairs:sum"] == 6
    assert split.metrics == pytest.approx(whole.metrics, rel=1e-4)
    memory.limit = 15
    with pytest.raises(ModelError) as caught:
        run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    assert caught.value.error_class == "OutOfMemoryError"
    assert caught.value.field == "data[0]"
    assert "data[0] of 8 tokens, data[1] of 8 tokens" in caught.value.message


def test_what_does_not_fit_alone_fails_and_costs_nothing(executor, make_run, make_pass, monkeypatch):
    run = make_run(warm=True)
    executor.execute("run", make_pass())
    before = [gradient.clone() for gradient in run.gradients]
    memory = SmallMemory(monkeypatch, 20)
    error = executor.execute("run", make_pass(lengths=(5, 12, 30))).operation.error
    assert (error.error_class, error.field) == ("OutOfMemoryError", "data[2]")
    assert "30 tokens" in error.message
    assert "--gradient-checkpointing" in error.hint
    assert all(torch.equal(a, b) for a, b in zip(run.gradients, before, strict=True))
    memory.limit = 100
    assert executor.execute("run", make_pass()).operation.HasField("forward_backward")


def test_a_lack_of_memory_is_remembered_for_a_while(executor, make_run, make_pass, monkeypatch):
    make_run(warm=True)
    memory = SmallMemory(monkeypatch, 64)  # half of the executor's budget
    call = make_pass(lengths=(8,) * 16)
    assert executor.execute("run", call).operation.HasField("forward_backward")
    assert memory.failures == [128]
    short = dataclasses.replace(make_pass(lengths=(3,)), backward=False)
    executor.execute("run", call)
    for _ in range(CALM_PASSES - 1):
        executor.execute("run", short)
    assert memory.failures == [128]
    executor.execute("run", call)  # it is given another chance
    assert memory.failures == [128, 128]


def test_other_verbs_say_it_too(executor, make_run, make_pass, monkeypatch):
    make_run(warm=True)
    executor.execute("run", make_pass())

    def fail(*args):
        raise torch.OutOfMemoryError("no memory for moments")

    with monkeypatch.context() as patch:
        patch.setattr(Optimizer, "step", fail)
        error = executor.execute("run", AdamSettings(1e-3, 0.9, 0.95, 1e-8, 0.0, 0.0)).operation.error
    assert error.error_class == "OutOfMemoryError"
    assert "rank" in error.hint
    stepped = executor.execute("run", AdamSettings(1e-3, 0.9, 0.95, 1e-8, 0.0, 0.0)).operation
    assert stepped.HasField("optim_step")


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_run, make_pass, monkeypatch):
    adapter = make_run(warm=True).adapter
    memory = SmallMemory(monkeypatch, 20, error=lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        run_pass(adapter, make_pass(lengths=(8,) * 8), token_budget=64, dropout_seed=0)
    assert memory.failures == [64]


def test_the_real_allocator_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError(ALLOCATOR))
