"""What the flags mean: dtype, batching, gradient checkpointing, determinism."""

import argparse
import os

import numpy as np
import pytest
import torch

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.packed import ATTENTION
from farstep_model.spec import LoraSpec
from farstep_proto.errors import InvalidInput
from farstep_worker import compute
from farstep_worker.compute import ComputeSettings, prepare
from farstep_worker.device import CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET, TRIAL_TOKENS, Gpu, device_at
from farstep_worker.executor import Executor
from farstep_worker.runs import RunConfig
from farstep_worker.submission import AdamSettings
from tests.support.tiny_models import write_model
from tests.unit.worker.test_gradients import distance

CPU = torch.device("cpu")
LENGTHS = (40, 1, 17, 80, 9, 33)


@pytest.fixture
def started(tmp_path):
    """An executor with one warm run, by settings."""

    def start(*, dropout=0.0, **settings):
        ready = prepare("farstep/tiny", ComputeSettings(**settings), device="cpu", num_threads=1)
        executor = Executor(
            ready.layers, CheckpointStore(tmp_path / "store"), token_budget=ready.token_budget, layout=ready.layout
        )
        run = executor.create_run(RunConfig("run", LoraSpec(4, dropout=dropout), 1, 512))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in run.adapter.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return executor, run

    return start


def executed(executor, call):
    operation = executor.execute("run", call).operation
    assert not operation.HasField("error"), operation.error
    return operation


def logprobs_of(operation):
    outputs = operation.forward_backward.loss_fn_outputs
    return np.concatenate([np.frombuffer(output.fields["logprobs"].data, dtype=np.float32) for output in outputs])


@pytest.mark.parametrize(
    "settings",
    [
        ComputeSettings(),
        ComputeSettings("bfloat16", "packed", 77, gradient_checkpointing=True, deterministic=True),
        ComputeSettings(dtype="float32", batching="padded"),
    ],
)
def test_settings_become_flags_and_flags_settings(settings):
    parser = argparse.ArgumentParser()
    ComputeSettings.add_flags(parser)
    assert ComputeSettings.of(parser.parse_args(settings.to_flags())) == settings
    assert ComputeSettings.of(parser.parse_args([])) == ComputeSettings()


@pytest.mark.parametrize(
    "flags",
    [["--dtype", "float16"], ["--batching", "nested"], ["--token-budget", "0"], ["--token-budget", "many"]],
)
def test_flags_that_make_no_sense(flags, capsys):
    parser = argparse.ArgumentParser()
    ComputeSettings.add_flags(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(flags)
    assert flags[0] in capsys.readouterr().err


def test_a_cpu_pads_in_fp32_unless_told_otherwise():
    ready = prepare("farstep/tiny", ComputeSettings(), device="cpu", num_threads=1)
    assert (ready.layout, ready.token_budget) == ("padded", CPU_TOKEN_BUDGET)
    assert ready.layers.base.dtype == torch.float32
    assert ready.layers.base.model.config._attn_implementation != ATTENTION
    assert prepare("farstep/tiny", ComputeSettings(token_budget=99), device="cpu", num_threads=1).token_budget == 99


def test_a_model_that_cannot_be_packed_is_refused_if_asked_and_padded_if_not(tmp_path, monkeypatch, caplog):
    write_model("hybrid", tmp_path)
    with pytest.raises(InvalidInput, match="layers of linear_attention") as caught:
        prepare(str(tmp_path), ComputeSettings(batching="packed"), device="cpu", num_threads=1)
    assert caught.value.field == "batching"
    monkeypatch.setattr(device_at(CPU), "layout", "packed")  # as a GPU would
    assert prepare(str(tmp_path), ComputeSettings(), device="cpu", num_threads=1).layout == "padded"
    assert "layers of linear_attention" in caplog.text
    assert prepare("farstep/tiny", ComputeSettings(), device="cpu", num_threads=1).layout == "packed"


@pytest.mark.parametrize("batching", ["padded", "packed"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_bit(started, make_pass, batching, dropout):
    call = make_pass("ppo", lengths=LENGTHS)
    found = []
    for on in (False, True):
        executor, run = started(batching=batching, gradient_checkpointing=on, dropout=dropout)
        operation = executed(executor, call)
        found.append((operation.forward_backward.metrics["loss:sum"], run.gradients))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize("batching", ["padded", "packed"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_bf16_base_is_trained_by_fp32_adapters(started, make_pass, batching, gradient_checkpointing):
    """bf16 keeps 8 bits: 0.4 % a rounding, and some thirty of them in a row through the model's layers."""
    call = make_pass("cross_entropy", lengths=LENGTHS)
    exact, exact_run = started()
    rough, rough_run = started(dtype="bfloat16", batching=batching, gradient_checkpointing=gradient_checkpointing)
    assert rough.base.dtype == torch.bfloat16
    one, other = executed(exact, call), executed(rough, call)
    assert logprobs_of(one).any()
    np.testing.assert_allclose(logprobs_of(other), logprobs_of(one), atol=0.15)
    assert np.abs(logprobs_of(other) - logprobs_of(one)).mean() < 0.02
    assert not np.array_equal(logprobs_of(other), logprobs_of(one))
    assert all(gradient.dtype == torch.float32 for gradient in rough_run.gradients)
    assert distance(rough_run.gradients, [gradient.double() for gradient in exact_run.gradients]) < 0.05
    before = [parameter.detach().clone() for parameter in rough_run.adapter.parameters()]
    executed(rough, AdamSettings(1e-5, 0.9, 0.95, 1e-8, 0.0, 0.0))
    moved = [(a - b).abs().max() for a, b in zip(rough_run.adapter.parameters(), before, strict=True)]
    assert min(moved) > 0  # steps far below the resolution of bf16 are taken
    state = rough_run.optimizer.state_bytes()
    assert b"BF16" not in state
    assert b"F32" in state


def test_a_bf16_run_learns(started, make_pass):
    executor, _ = started(dtype="bfloat16")
    call = make_pass("cross_entropy", lengths=LENGTHS)
    losses = []
    for _ in range(4):
        losses.append(executed(executor, call).forward_backward.metrics["loss:sum"])
        executed(executor, AdamSettings(1e-2, 0.9, 0.95, 1e-8, 0.0, 0.0))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_determinism_is_asked_of_torch(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        prepare("farstep/tiny", ComputeSettings(deterministic=True), device="cpu", num_threads=1)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


def test_micro_batches_grow_with_the_threads_of_a_cpu_up_to_a_limit():
    budgets = [device_at(CPU).token_budget(pytest.fail, num_threads=number) for number in (1, 2, 4, 64)]
    assert budgets == [2_048, 4_096, 8_192, 8_192]


def test_a_gpu_measures_what_fits(monkeypatch):
    gpu, seen = Gpu(torch.device("cuda", 0)), []

    class Peak:
        def __enter__(self):
            self.sizes = []
            return self.sizes

        def __exit__(self, *args):
            self.sizes.append(1_000_000 + 1_000 * seen[-1])

    monkeypatch.setattr(gpu, "peak_bytes", Peak)
    monkeypatch.setattr(gpu, "free_bytes", lambda: 10_000_000)
    assert gpu.token_budget(seen.append, num_threads=8) == 5_000
    assert seen == [TRIAL_TOKENS[0], *TRIAL_TOKENS]
    monkeypatch.setattr(gpu, "free_bytes", lambda: 10**12)
    assert gpu.token_budget(seen.append, num_threads=8) == GPU_TOKEN_BUDGET


def test_the_trial_pass_is_as_long_as_it_says(started, monkeypatch):
    executor, _ = started()
    sizes = []
    monkeypatch.setattr(compute, "run_pass", lambda adapter, call, **settings: sizes.append(call.num_tokens))
    for num_tokens in TRIAL_TOKENS:
        compute._try_pass(executor._layers, "padded", num_tokens)
    assert sizes == list(TRIAL_TOKENS)
