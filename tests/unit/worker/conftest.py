"""One copy of the embedded model for all tests of the trainer, and data for it."""

import json

import numpy as np
import pytest
import torch

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.load import load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_proto.custom_loss import CustomLoss
from farstep_proto.loss_table import LOSS_TABLE
from farstep_proto.tensors import model_input_to_proto, tensor_to_proto
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.executor import Executor
from farstep_worker.runs import RunConfig
from farstep_worker.submission import Example, Limits, Pass, parse_call
from tests.unit.worker.wire import GatedExecutor, serving, to_request


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)  # small tensors, on machines that do other things too


@pytest.fixture(scope="session")
def layers():
    return LoraLayers.install(load_base_model(device="cpu"))


@pytest.fixture
def executor(layers, tmp_path):
    return Executor(layers, CheckpointStore(tmp_path / "store"), token_budget=128)


@pytest.fixture
def make_run(executor):
    """Creates a run; `warm` puts noise into its adapter, so that every gradient is there."""

    def make(run_id="run", *, rank=4, dropout=0.0, seed=1, warm=False, **spec):
        config = RunConfig(run_id, LoraSpec(rank, dropout=dropout, **spec), seed, executor.base.max_seq_len)
        run = executor.create_run(config)
        if warm:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in run.adapter.parameters():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return run

    return make


@pytest.fixture
def make_pass(layers):
    """A pass over data of the given lengths with all that its loss needs, the same for the same seed."""

    def make(loss_fn="cross_entropy", *, lengths=(5, 12, 3, 9), seed=0, backward=True, config=None):
        rng = np.random.default_rng(seed)
        examples = []
        for length in lengths:
            tokens = rng.integers(3, layers.base.vocab_size, length).astype(np.int32)
            inputs = {
                "target_tokens": np.roll(tokens, -1).astype(np.int64),
                "weights": rng.choice([0.0, 0.5, 1.0], length).astype(np.float32),
                "logprobs": -rng.uniform(2, 8, length).astype(np.float32),
                "advantages": rng.normal(size=length).astype(np.float32),
                "ref_logprobs": (-4 - 4 * (np.arange(length) % 5) / 5).astype(np.float32),
                "sequence_ratio_mask": (np.arange(length) % 3 != 1).astype(np.float32),
                "returns": np.cos(np.arange(length) * (1.0 + seed)).astype(np.float32),
                "values": (0.4 * np.sin(np.arange(length))).astype(np.float32),
            }
            inputs["target_tokens"][-1] = -100
            spec = LOSS_TABLE[loss_fn]
            keep = (*spec.required, *spec.optional)
            examples.append(Example(tokens, {key: inputs[key] for key in inputs if key in keep}))
        return Pass(loss_fn, config or {}, tuple(examples), backward)

    return make


# What the SDK sends for: def loss(logprobs, weights, mask, factor):
#     return -(logprobs * weights * mask).sum() * factor, {"custom/mask:mean": mask.sum().float()}
GRAPH = [
    {"op": "placeholder", "name": "logprobs", "target": "logprobs"},
    {"op": "placeholder", "name": "weights", "target": "weights"},
    {"op": "placeholder", "name": "mask", "target": "mask"},
    {"op": "placeholder", "name": "factor", "target": "factor"},
    {"op": "call_function", "name": "mul", "target": "operator.mul", "args": [{"ref": "logprobs"}, {"ref": "weights"}]},
    {"op": "call_function", "name": "mul_1", "target": "operator.mul", "args": [{"ref": "mul"}, {"ref": "mask"}]},
    {"op": "call_method", "name": "sum_1", "target": "sum", "args": [{"ref": "mul_1"}]},
    {"op": "call_function", "name": "neg", "target": "operator.neg", "args": [{"ref": "sum_1"}]},
    {"op": "call_function", "name": "mul_2", "target": "operator.mul", "args": [{"ref": "neg"}, {"ref": "factor"}]},
    {"op": "call_method", "name": "sum_2", "target": "sum", "args": [{"ref": "mask"}]},
    {"op": "call_method", "name": "float_1", "target": "float", "args": [{"ref": "sum_2"}]},
    {
        "op": "output",
        "name": "output",
        "target": "output",
        "args": [{"tuple": [{"ref": "mul_2"}, {"dict": {"custom/mask:mean": {"ref": "float_1"}}}]}],
    },
]


@pytest.fixture
def make_custom_pass(layers):
    """A pass of the loss above: weights of 0 among them, integers, and a number for each datum."""

    def make(*, lengths=(5, 12, 3, 9), seed=0, backward=True, nodes=GRAPH):
        rng = np.random.default_rng(seed)
        ranks = {"logprobs": 1, "weights": 1, "mask": 1, "factor": 0}
        loss = pb.CustomLoss(name="mine", nodes=json.dumps(nodes).encode())
        loss.inputs.extend(pb.CustomLossInput(name=name, rank=rank) for name, rank in ranks.items())
        request = pb.ForwardRequest(loss_fn="custom", custom_loss=loss)
        for index, length in enumerate(lengths):
            tokens = rng.integers(3, layers.base.vocab_size, length)
            inputs = {
                "target_tokens": np.roll(tokens, -1),
                "weights": rng.choice([0.0, 0.5, -1.0], length).astype(np.float32),
                "mask": np.arange(length) % 3 - 1,
                "factor": np.array(1.0 + index, dtype=np.float32),
                "unused": np.zeros(2),
            }
            request.data.add(
                model_input=model_input_to_proto(tokens),
                loss_fn_inputs={key: tensor_to_proto(array) for key, array in inputs.items()},
            )
        limits = Limits(layers.base.vocab_size, 128)
        verb = "forward_backward" if backward else "forward"
        if not lengths:  # no client may say this: a rank's empty share
            return Pass("custom", {}, (), backward, custom=CustomLoss.from_proto(loss))
        return parse_call(verb, request, limits)

    return make


@pytest.fixture
def gated(executor):
    gated = GatedExecutor(executor)
    yield gated
    gated.gate.set()


@pytest.fixture
async def trainer(gated):
    """A client of a trainer that has one run, "run"."""
    async with serving(gated) as trainer:
        assert (await trainer.create()).status_code == 200
        yield trainer


@pytest.fixture
def request_of(make_pass):
    """As `make_pass`, as a message."""
    return lambda **settings: to_request(make_pass(**settings))
