"""The executor on a GPU against the same on the CPU; lack of memory that is real; two passes that agree to the bit."""

import numpy as np
import pytest
import torch

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.spec import LoraSpec
from farstep_worker import gradients
from farstep_worker.compute import ComputeSettings, prepare
from farstep_worker.device import GPU_TOKEN_BUDGET, device_at
from farstep_worker.executor import Executor
from farstep_worker.runs import RunConfig
from farstep_worker.submission import AdamSettings, Example, Pass
from tests.support.tiny_models import VOCAB, write_model

LENGTHS = (60, 1, 33, 100, 7, 16)
ADAM = AdamSettings(1e-3, 0.9, 0.95, 1e-8, 0.0, 1.0)


@pytest.fixture
def model(tmp_path):
    write_model("wide_llama", tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def start(model, tmp_path):
    def begin(device="cuda", *, dropout=0.0, **settings):
        ready = prepare(model, ComputeSettings(**settings), device=device, num_threads=1)
        store = CheckpointStore(tmp_path / "store")
        executor = Executor(ready.layers, store, token_budget=ready.token_budget, layout=ready.layout)
        run = executor.create_run(RunConfig("run", LoraSpec(8, dropout=dropout), 1, 128))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in run.adapter.parameters():
                parameter += (0.05 * torch.randn(parameter.shape, generator=generator)).to(parameter.device)
        return executor, run

    return begin


def draw(lengths=LENGTHS, *, seed=0, loss_fn="ppo"):
    rng = np.random.default_rng(seed)
    examples = []
    for length in lengths:
        tokens = rng.integers(3, VOCAB, length + 1)
        inputs = {
            "target_tokens": tokens[1:],
            "logprobs": -rng.uniform(4, 7, length).astype(np.float32),
            "advantages": rng.normal(size=length).astype(np.float32),
            "ref_logprobs": -rng.uniform(4, 7, length).astype(np.float32),
        }
        needed = {
            "ppo": ("target_tokens", "logprobs", "advantages"),
            "dpo": ("target_tokens", "ref_logprobs"),
            "cross_entropy": ("target_tokens",),
        }[loss_fn]
        examples.append(Example(tokens[:-1].astype(np.int32), {key: inputs[key] for key in needed}))
    return Pass(loss_fn, {}, tuple(examples), backward=True)


def executed(executor, call):
    operation = executor.execute("run", call).operation
    assert not operation.HasField("error"), operation.error
    return operation


def fill_memory():
    """Tensors that leave no free kilobyte of what this process may have."""
    ballast, size = [], 1 << 24
    while size >= 1 << 9:
        try:
            ballast.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    return ballast


def relative_distance(found, expected):
    difference = sum(((a.cpu() - b.cpu()) ** 2).sum() for a, b in zip(found, expected, strict=True)).sqrt()
    return float(difference / sum((b.cpu() ** 2).sum() for b in expected).sqrt())


@pytest.mark.parametrize("loss_fn", ["cross_entropy", "ppo", "dpo"])
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({}, 0.05),  # packed, in bf16
        ({"batching": "padded"}, 0.05),
        ({"gradient_checkpointing": True}, 0.05),
        ({"dtype": "float32", "batching": "padded"}, 1e-4),  # no TF32: that would be 1e-3
        ({"dtype": "float32", "batching": "packed"}, 1e-4),
    ],
)
def test_a_gpu_computes_what_a_cpu_does(start, loss_fn, settings, tolerance):
    call = draw(loss_fn=loss_fn)
    cpu, cpu_run = start("cpu")
    gpu, gpu_run = start(**settings)
    if not settings:
        assert gpu._layout == "packed"
    one, other = executed(cpu, call), executed(gpu, call)
    assert relative_distance(gpu_run.gradients, cpu_run.gradients) < tolerance
    assert other.forward_backward.loss == pytest.approx(one.forward_backward.loss, rel=10 * tolerance, abs=tolerance)
    assert all(gradient.dtype == torch.float32 for gradient in gpu_run.gradients)
    executed(gpu, ADAM)


def test_the_budget_is_measured(start):
    executor, _ = start()
    assert 512 <= executor._token_budget.limit <= GPU_TOKEN_BUDGET


def test_memory_that_really_runs_out_is_split_around(start):
    executor, run = start(token_budget=GPU_TOKEN_BUDGET)
    call = draw((128,) * 128)
    executed(executor, call)
    expected = [gradient.clone() for gradient in run.gradients]
    run.gradients = None
    gpu = device_at(executor.base.device)
    with gpu.peak_bytes() as peak:
        executed(executor, call)
    run.gradients = None
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 0.4 * peak[0]) / total)
    try:
        executed(executor, call)
        assert executor._token_budget.current() < GPU_TOKEN_BUDGET
        assert relative_distance(run.gradients, expected) < 0.05
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_memory_that_does_not_suffice_at_all_is_an_error_and_not_the_end(start):
    executor, run = start(token_budget=2_048)
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (64 << 20)) / total)
    ballast = fill_memory()
    try:
        error = executor.execute("run", draw((128,))).operation.error
    finally:
        ballast.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert error.error_class == "OutOfMemoryError"
    assert run.gradients is None
    executed(executor, draw())


@pytest.mark.parametrize("batching", ["padded", "packed"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_deterministic_passes_agree_to_the_bit(start, batching, dropout):
    found = []
    try:
        for _ in range(2):
            executor, run = start(deterministic=True, batching=batching, dropout=dropout)
            executed(executor, draw())
            found.append(run.gradients)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradient_checkpointing_takes_less_memory_for_the_same_gradients(start):
    peaks, gradients = [], []
    for on in (False, True):
        executor, run = start(gradient_checkpointing=on, token_budget=8_192, dropout=0.2)
        call = draw((128,) * 64)
        executed(executor, call)
        run.gradients = None
        with device_at(executor.base.device).peak_bytes() as peak:
            executed(executor, call)
        peaks.append(peak[0])
        gradients.append(run.gradients)
    assert peaks[1] < 0.8 * peaks[0]
    assert relative_distance(*gradients) < 0.02


def test_phases_add_up_to_the_time_it_took(start):
    executor, _ = start()
    executed(executor, draw())
    outcome = executor.execute("run", draw())
    assert {"forward", "backward"} <= outcome.phases_s.keys()
    assert all(seconds > 0 for seconds in outcome.phases_s.values())


def test_a_pass_waits_for_the_gpu_only_at_its_end(start):
    """torch raises at every wait inside; `run_pass` looks at its results when all is under way."""
    executor, _ = start(token_budget=128)
    executed(executor, draw())
    seen = []
    result_of = gradients._Total.result

    def allowed(total, call):
        torch.cuda.set_sync_debug_mode("default")
        seen.append(len(total.parts))
        return result_of(total, call)

    patch = pytest.MonkeyPatch()
    patch.setattr(gradients._Total, "result", allowed)
    try:
        torch.cuda.set_sync_debug_mode("error")
        executed(executor, draw(seed=1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
        patch.undo()
    assert seen
    assert seen[0] > 1
