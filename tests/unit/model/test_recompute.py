"""Gradient checkpointing: the same gradients from less memory."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from farstep_model.lora import LoraLayers
from farstep_model.recompute import enable_recomputation
from farstep_proto.errors import InvalidInput
from tests.support.tiny_models import VOCAB


def gradients_of(layers, adapter, ids_BT, *, after=None):
    """Of a weighted sum of hidden states; `after` gets a chance to disturb what is active before the backward pass."""
    torch.manual_seed(7)
    with layers.active([adapter]), layers.training(adapter.spec.dropout > 0):
        hidden_BTD = layers.base.hidden_states(ids_BT)
        loss = (hidden_BTD * torch.linspace(-1, 1, hidden_BTD.shape[-1])).sum()
    if after is not None:
        with after:
            return torch.autograd.grad(loss, adapter.parameters())
    return torch.autograd.grad(loss, adapter.parameters())


def peak_bytes(compute):
    """The most that was allocated at once beyond what was there before."""
    compute()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        compute()
    events = profiler.profiler.kineto_results.events()
    sizes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    total = peak = 0
    for _, size in sorted(sizes):
        total += size
        peak = max(peak, total)
    assert peak > 0
    return peak


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2", "moe", "hybrid", "alibi"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_gradients_are_the_same(load, make_adapter, ids_BT, kind, dropout):
    found = []
    for recompute in (False, True):
        layers = LoraLayers.install(load(kind))
        if recompute:
            enable_recomputation(layers)
        adapter = make_adapter(layers, dropout=dropout)
        found.append(gradients_of(layers, adapter, ids_BT))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_what_is_active_by_then_does_not_matter(load, make_adapter, ids_BT):
    layers = LoraLayers.install(load("llama"))
    enable_recomputation(layers)
    adapter, other = make_adapter(layers, dropout=0.3), make_adapter(layers, seed=2)
    expected = gradients_of(layers, adapter, ids_BT)
    found = gradients_of(layers, adapter, ids_BT, after=layers.active([other]))
    for one, another in zip(expected, found, strict=True):
        assert torch.equal(one, another)
    assert layers.switch.source is None


def test_it_takes_less_memory(load, make_adapter):
    ids_BT = torch.randint(3, VOCAB, (8, 100), generator=torch.Generator().manual_seed(3))
    peaks = []
    for recompute in (False, True):
        layers = LoraLayers.install(load("llama"))
        if recompute:
            enable_recomputation(layers)
        adapter = make_adapter(layers)
        peaks.append(peak_bytes(lambda layers=layers, adapter=adapter: gradients_of(layers, adapter, ids_BT)))
    # two layers: one of them, and what lies between them, is held at a time
    assert peaks[1] < 0.75 * peaks[0], peaks


def test_a_pass_without_gradients_is_what_it_was(load, ids_BT):
    plain, layers = load("llama"), LoraLayers.install(load("llama"))
    enable_recomputation(layers)
    with torch.no_grad():
        assert torch.equal(layers.base.hidden_states(ids_BT), plain.hidden_states(ids_BT))


def test_a_model_without_known_layers_is_refused(layers, monkeypatch):
    monkeypatch.setattr(layers.base.model, "get_decoder", lambda: torch.nn.Linear(2, 2))
    with pytest.raises(InvalidInput) as caught:
        enable_recomputation(layers)
    assert caught.value.field == "gradient_checkpointing"
