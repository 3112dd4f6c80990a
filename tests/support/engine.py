"""`Engines`: what a trainer asks of a service, computed in this process: the worker's own messages, micro-batches,
losses and gradients, and neither HTTP nor a queue. What a step differentiated can be looked at.
"""

from types import SimpleNamespace

import torch

from farstep import _convert
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.load import load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.packed import enable_packing
from farstep_model.spec import LoraSpec
from farstep_proto.v1 import operations_pb2
from farstep_worker.executor import Executor
from farstep_worker.runs import RunConfig
from farstep_worker.submission import parse_call


class Engines:
    """Stands where a trainer takes a ServiceClient.

    Args:
        tokenizer: of all its runs.
        noise: what fresh adapters are moved by, so that all their gradients are there; their "start" stays fresh.
        layout: "padded" as on a CPU, or "packed" as on a GPU.
        token_budget: of a micro-batch.
    """

    def __init__(self, folder, *, tokenizer=None, noise=0.05, layout="padded", token_budget=512):
        base = load_base_model(device="cpu")
        if layout == "packed":
            enable_packing(base)
        self.layers = LoraLayers.install(base)
        self.executor = Executor(self.layers, CheckpointStore(folder), layout=layout, token_budget=token_budget)
        self.tokenizer, self.noise = tokenizer, noise
        self.runs = []

    def create_lora_training_client(self, base_model, rank, *, alpha=None, seed=0, value_head=False, **options):
        lora = LoraSpec(rank, alpha=alpha, value_head=value_head)
        name = f"run-{len(self.runs)}"
        run = self.executor.create_run(RunConfig(name, lora, seed, self.layers.base.max_seq_len))
        generator = torch.Generator().manual_seed(len(self.runs))
        with torch.no_grad():
            for parameter in run.adapter.parameters():
                parameter += self.noise * torch.randn(parameter.shape, generator=generator)
        self.runs.append(EngineRun(self, run))
        return self.runs[-1]

    def delete_run(self, run_id):
        self.executor.delete_run(run_id)


class EngineRun:
    """Stands where a trainer has a TrainingClient. `stepped` are the gradients of the last optimizer step, as they
    were before it clipped them; None for a parameter that no pass had reached."""

    def __init__(self, engines, run):
        self._engines, self.run, self.run_id = engines, run, run.config.run_id
        self.stepped = None
        self.closed = False

    @property
    def adapter(self):
        return self.run.adapter

    def get_info(self):
        return SimpleNamespace(max_seq_len=self.run.config.max_seq_len, value_head=self.run.config.lora.value_head)

    def get_tokenizer(self):
        return self._engines.tokenizer

    def close(self):
        self.closed = True

    def forward(self, data, loss_fn="cross_entropy", loss_fn_config=None, *, adapter="current"):
        return self._passed("forward", data, loss_fn, loss_fn_config, adapter)

    def forward_backward(self, data, loss_fn="cross_entropy", loss_fn_config=None):
        return self._passed("forward_backward", data, loss_fn, loss_fn_config, "current")

    def optim_step(self, params):
        self.stepped = [None if each is None else each.clone() for each in self.run.gradients]
        return self._executed("optim_step", _convert.adam_to_proto(params), _convert.optim_step_response)

    def _passed(self, verb, data, loss_fn, config, adapter):
        request = _convert.forward_request(
            data,
            loss_fn,
            config,
            vocab_size=self._engines.layers.base.vocab_size,
            max_seq_len=self.run.config.max_seq_len,
            adapter=adapter,
            backward=verb == "forward_backward",
            has_value_head=self.run.config.lora.value_head,
        )
        return self._executed(verb, request, _convert.forward_backward_output)

    def _executed(self, verb, request, decode):
        call = parse_call(verb, request, self.run.config.limits(self._engines.layers.base.vocab_size))
        operation = self._engines.executor.execute(self.run_id, call).operation
        operation.state = (
            operations_pb2.OPERATION_STATE_FAILED
            if operation.HasField("error")
            else operations_pb2.OPERATION_STATE_SUCCEEDED
        )
        return _Done(operation, decode)


class _Done:
    """A future whose outcome is there."""

    def __init__(self, operation, decode):
        self._operation, self._decode = operation, decode

    def result(self, timeout=None):
        error = _convert.outcome_error(self._operation)
        if error is not None:
            raise error
        return self._decode(self._operation)
