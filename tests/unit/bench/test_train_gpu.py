"""The GPU benchmark on a tiny model and a CPU: that it runs, and that it counts right."""

import json

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bench import train_gpu
from bench.flops import step_flops
from farstep_model import products
from farstep_model.adapter import Adapter
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_worker.gradients import run_pass

CPU = torch.device("cpu")


def test_it_runs_and_its_last_line_is_its_figures(capsys):
    train_gpu.main(["--size", "tiny", "--device", "cpu", "--steps", "1", "--num-sequences", "4", "--longest", "40"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for layout in ("padded", "packed"):
        assert figures[f"{layout}_tokens_per_s"] > 0
        assert 0 < figures[f"{layout}_mfu"] < 1.5  # of a rate that other processes may have slowed down
        assert figures[f"{layout}_peak_gib"] > 0
    assert figures["packed_over_padded"] > 0
    assert figures["first_loss_difference"] < 1e-3
    assert figures["device"] == "cpu"
    assert figures["settings"]["gradient_checkpointing"] is False


@pytest.mark.parametrize("rank", [1, 8])
def test_what_is_counted_is_what_torch_counts(rank, monkeypatch):
    layers = LoraLayers.install(train_gpu.random_base("tiny", CPU))
    adapter = Adapter.init(layers, LoraSpec(rank), seed=0)
    # torch counts no product that adds in place
    monkeypatch.setattr(products, "add_product", lambda out, x, w, scaling=1.0: out + scaling * functional.linear(x, w))
    lengths = (33,)
    call = train_gpu.draw_pass(lengths, seed=0, vocab_size=layers.base.vocab_size)
    with FlopCounterMode(display=False) as counter:
        run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    by_operator = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    counted = sum(count for name, count in by_operator.items() if "mm" in name)
    config = layers.base.model.config
    attention = 6 * config.num_hidden_layers * config.hidden_size * lengths[0] ** 2
    # The gradient at the first layer's input is nobody's: torch leaves it out, the customary count does not.
    first = layers.base.model.get_decoder().layers[0].self_attn
    unneeded = sum(2 * (linear.weight.numel() + rank * 64) for linear in (first.q_proj, first.k_proj, first.v_proj))
    assert step_flops(adapter, lengths) - attention - lengths[0] * unneeded == counted
