"""LoRA layers against PEFT on the same base and weights, and several adapters in one batch against each alone."""

from collections.abc import Callable, Mapping
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel, load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.slots import AdapterSlots
from farstep_model.spec import LoraSpec
from farstep_proto.errors import InvalidInput

Load = Callable[[str], BaseModel]
Make = Callable[..., Adapter]

ALL = {"train_attn": True, "train_mlp": True, "train_unembed": True}


def logits_of(base: BaseModel, ids_BT: Tensor) -> Tensor:
    return base.logits(base.hidden_states(ids_BT))


def gradients(adapter: Adapter) -> Mapping[str, Tensor]:
    return {name: p.grad for name, p in zip(adapter.names(), adapter.parameters(), strict=True) if p.grad is not None}


def with_peft(base: BaseModel, adapter: Adapter) -> peft.PeftModel:
    model = peft.get_peft_model(base.model, peft.LoraConfig(**peft_settings(adapter)))
    peft.set_peft_model_state_dict(model, adapter.state_dict())
    return model.eval()


def peft_settings(adapter: Adapter) -> dict[str, Any]:
    spec = adapter.spec
    return {
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "use_rslora": spec.use_rslora,
        "use_dora": spec.use_dora,
        "lora_dropout": spec.dropout,
        "target_modules": list(adapter.layers.module_names(list(adapter.weights))),
        "task_type": "CAUSAL_LM",
    }


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen3", {"train_unembed": False}),
        ("llama", ALL),
        ("llama", {"use_rslora": True}),
        ("llama", {"use_dora": True, **ALL}),
        ("qwen3", {"use_dora": True, "use_rslora": True}),
        ("moe", {"use_dora": True}),
        ("gemma2", {"train_mlp": False}),
        ("moe", {}),
    ],
)
def test_logits_and_gradients_are_pefts(
    make_adapter: Make, load: Load, ids_BT: Tensor, kind: str, settings: dict[str, bool]
) -> None:
    base = load(kind)
    layers = LoraLayers.install(base)
    adapter = make_adapter(layers, **settings)
    weight_BTV = torch.randn(*ids_BT.shape, base.vocab_size, generator=torch.Generator().manual_seed(5))
    with layers.active([adapter]):
        logits = logits_of(base, ids_BT)
        (logits * weight_BTV).sum().backward()

    reference = with_peft(load(kind), adapter)
    expected = reference(ids_BT).logits
    (expected * weight_BTV).sum().backward()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    check_gradients(gradients(adapter), reference)


def check_gradients(got: Mapping[str, Tensor], reference: peft.PeftModel) -> None:
    expected = {
        name.replace(".default", "").replace("vector.weight", "vector"): p.grad
        for name, p in reference.named_parameters()
        if p.grad is not None
    }
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def add_biases(model: nn.Module) -> None:
    """Which the tiny models lack, and which an update must not change."""
    generator = torch.Generator().manual_seed(9)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(torch.randn(module.out_features, generator=generator), requires_grad=False)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_dora": True, "train_unembed": True}])
def test_dropout_is_pefts(make_adapter: Make, load: Load, ids_BT: Tensor, settings: dict[str, bool]) -> None:
    """The same seed drops the same inputs; with DoRA what the base gives for them counts as well."""
    base, plain = load("llama"), load("llama")
    for model in (base.model, plain.model):
        add_biases(model)
    layers = LoraLayers.install(base)
    adapter = make_adapter(layers, dropout=0.4, **settings)
    torch.manual_seed(0)
    with layers.active([adapter]), layers.training():
        logits = logits_of(base, ids_BT)
    logits.square().sum().backward()
    reference = with_peft(plain, adapter).train()
    torch.manual_seed(0)
    expected = reference(ids_BT).logits
    expected.square().sum().backward()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    check_gradients(gradients(adapter), reference)


def test_a_fresh_adapter_with_dora_is_one_without(load: Load, ids_BT: Tensor) -> None:
    base = load("llama")
    add_biases(base.model)
    layers = LoraLayers.install(base)
    plain, fresh = (Adapter.init(layers, LoraSpec(4, use_dora=use, **ALL), seed=0) for use in (False, True))
    with layers.active([plain]):
        expected = logits_of(base, ids_BT)
    with layers.active([fresh]):
        assert torch.equal(logits_of(base, ids_BT), expected)
    assert plain.is_fresh()
    assert fresh.is_fresh()
    magnitudes = {name: tensor for name, tensor in fresh.state_dict().items() if "magnitude" in name}
    drawn = peft.get_peft_model(load("llama").model, peft.LoraConfig(**peft_settings(fresh)))
    for name, tensor in peft.get_peft_model_state_dict(drawn, save_embedding_layers=False).items():
        if name in magnitudes:
            torch.testing.assert_close(magnitudes.pop(name), tensor, rtol=1e-6, atol=0)
            continue
        assert "magnitude" not in name
    assert not magnitudes
    fresh.state_dict()[next(name for name in fresh.names() if "magnitude" in name)][3] *= 1.001
    assert not fresh.is_fresh()


def test_installing_changes_no_bit(load: Load, ids_BT: Tensor) -> None:
    base = load("qwen3")
    before, names = base.model(ids_BT).logits, list(base.model.state_dict())
    layers = LoraLayers.install(base)
    fresh = Adapter.init(layers, LoraSpec(4, **ALL), seed=0)
    assert torch.equal(base.model(ids_BT).logits, before)
    assert list(base.model.state_dict()) == names
    with layers.active([None]):
        assert torch.equal(base.model(ids_BT).logits, before)
    with layers.active([fresh]):
        torch.testing.assert_close(base.model(ids_BT).logits, before, rtol=0, atol=1e-6)
    assert torch.equal(base.model(ids_BT).logits, before)


def test_nothing_stays_active_after_an_error(make_adapter: Make, load: Load, ids_BT: Tensor) -> None:
    base = load("llama")
    layers = LoraLayers.install(base)
    before = base.model(ids_BT).logits
    with pytest.raises(RuntimeError, match="stop"), layers.active([make_adapter(layers)]):
        raise RuntimeError("stop")
    assert torch.equal(base.model(ids_BT).logits, before)


def test_layers_are_put_in_once(load: Load) -> None:
    base = load("llama")
    LoraLayers.install(base)
    with pytest.raises(InvalidInput, match="no linear layer to adapt"):
        LoraLayers.install(base)


def mixed_logits(layers: LoraLayers, adapters: list[Adapter | None], rows: list[int], ids_BT: Tensor) -> Tensor:
    base, rows_B = layers.base, torch.tensor(rows)
    with layers.active(adapters, rows_B):
        hidden_BTD = base.hidden_states(ids_BT)
    rows_N = rows_B.repeat_interleave(ids_BT.shape[1])
    with layers.active(adapters, rows_N):
        return base.logits(hidden_BTD.flatten(0, 1)).unflatten(0, ids_BT.shape)


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_mixed_batch_gives_every_row_what_it_has_alone(
    make_adapter: Make, load: Load, ids_BT: Tensor, use_dora: bool
) -> None:
    base = load("llama")
    add_biases(base.model)
    layers = LoraLayers.install(base)
    adapters = [
        make_adapter(layers, use_dora=use_dora, **ALL),
        None,
        make_adapter(layers, seed=2, rank=7, alpha=3.0, use_rslora=True, train_mlp=False),
    ]
    rows = [2, 0, 1, 0]
    logits_BTV = mixed_logits(layers, adapters, rows, ids_BT)
    logits_BTV.square().sum().backward()
    mixed = [gradients(adapter) for adapter in adapters if adapter is not None]
    for adapter in adapters:
        for parameter in adapter.parameters() if adapter is not None else []:
            parameter.grad = None

    for row, index in enumerate(rows):
        with layers.active([adapters[index]]):
            alone = logits_of(base, ids_BT[row : row + 1])
            torch.testing.assert_close(logits_BTV[row : row + 1], alone, rtol=1e-5, atol=1e-5)
            if adapters[index] is not None:
                alone.square().sum().backward()
    for adapter, got in zip([adapters[0], adapters[2]], mixed, strict=True):
        assert adapter is not None
        for name, gradient in gradients(adapter).items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_a_broken_adapter_harms_no_other_row(make_adapter: Make, load: Load, ids_BT: Tensor) -> None:
    layers = LoraLayers.install(load("llama"))
    broken, sound = make_adapter(layers, **ALL), make_adapter(layers, seed=2, **ALL)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    logits_BTV = mixed_logits(layers, [broken, sound], [0, 1, 0, 1], ids_BT)
    assert logits_BTV[0].isnan().all()
    logits_BTV[1].sum().backward()
    assert all(gradient.isfinite().all() for gradient in gradients(sound).values())


def test_rows_must_fit_the_adapters(load: Load) -> None:
    layers = LoraLayers.install(load("llama"))
    with pytest.raises(ValueError, match="2 adapters without rows_B"), layers.active([None, None]):
        pass
    with pytest.raises(ValueError, match="outside the 2 adapters"), layers.active([None, None], torch.tensor([0, 2])):
        pass


def test_tokens_without_rows_are_refused(make_adapter: Make, load: Load, ids_BT: Tensor) -> None:
    base = load("llama")
    layers = LoraLayers.install(base)
    hidden_ND = base.hidden_states(ids_BT).flatten(0, 1)
    adapters = [make_adapter(layers, **ALL), make_adapter(layers, **ALL)]
    with (
        layers.active(adapters, torch.tensor([0, 1, 0, 1])),
        pytest.raises(InvalidInput, match="several adapters at once"),
    ):
        base.logits(hidden_ND)


class Expert(nn.Module):
    """A feed-forward block that hands as many tokens to its expert as there are rows, but other ones."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(32, 32, bias=False)])

    def forward(self, x_BTD: Tensor) -> Tensor:
        out = x_BTD.clone()
        out[0, :4] = self.experts[0](x_BTD[0, :4])
        return out


def test_experts_serve_one_adapter_at_a_time(make_adapter: Make, load: Load, ids_BT: Tensor) -> None:
    base = load("llama")
    base.model.model.layers[0].mlp = Expert().requires_grad_(requires_grad=False)
    layers = LoraLayers.install(base)
    on_experts = make_adapter(layers, target_modules=("experts.0",))
    elsewhere = make_adapter(layers, target_modules=("q_proj",))
    plain = logits_of(base, ids_BT)
    with layers.active([on_experts]):
        assert not torch.allclose(logits_of(base, ids_BT), plain, atol=1e-3)
    rows_B = torch.tensor([0, 1, 0, 1])
    with layers.active([elsewhere, None], rows_B):
        base.hidden_states(ids_BT)
    slots = AdapterSlots(layers, 3, 4)
    slots.load(1, on_experts)
    slots.load(2, elsewhere)
    with slots.active([0, 2, 0, 2]):
        base.hidden_states(ids_BT)
    for mixed in (layers.active([on_experts, None], rows_B), slots.active([0, 1, 0, 1])):
        with mixed, pytest.raises(InvalidInput, match="several adapters at once") as caught:
            base.hidden_states(ids_BT)
        assert caught.value.field == "lora.target_modules"


def test_dropout_is_for_training_only_and_follows_the_seed(make_adapter: Make, load: Load, ids_BT: Tensor) -> None:
    base = load("llama")
    layers = LoraLayers.install(base)
    adapter, without = make_adapter(layers, dropout=0.5), make_adapter(layers)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return logits_of(base, ids_BT)

    with layers.active([without]):
        plain = run(0)
    with layers.active([adapter]):
        assert torch.equal(run(0), plain)
        with layers.training():
            first = run(0)
            assert not torch.allclose(first, plain, atol=1e-3)
            assert torch.equal(run(0), first)
            assert not torch.equal(run(1), first)
        assert torch.equal(run(0), plain)
    rows_B = torch.tensor([0, 1, 0, 1])
    refused = pytest.raises(InvalidInput, match="dropout cannot share")
    with layers.active([adapter, without], rows_B), layers.training(), refused as caught:
        base.hidden_states(ids_BT)
    assert caught.value.field == "lora.dropout"


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_bf16_base_trains_an_fp32_adapter(
    make_adapter: Make, model_folder: Callable[[str], Any], ids_BT: Tensor, use_dora: bool
) -> None:
    base = load_base_model(str(model_folder("llama")), device="cpu", dtype=torch.bfloat16)
    layers = LoraLayers.install(base)
    adapter, other = make_adapter(layers, use_dora=use_dora, **ALL), make_adapter(layers, seed=2, rank=2)
    reference = load_base_model(str(model_folder("llama")), device="cpu")
    reference_layers = LoraLayers.install(reference)
    with layers.active([adapter]):
        logits = logits_of(base, ids_BT)
    logits.mean().backward()
    with reference_layers.active([make_adapter(reference_layers, use_dora=use_dora, **ALL)]):
        expected = logits_of(reference, ids_BT)
    assert {gradient.dtype for gradient in gradients(adapter).values()} == {torch.float32}
    assert (logits - expected).abs().mean() < 0.02 * expected.abs().mean()
    mixed = mixed_logits(layers, [adapter, other], [0, 1, 0, 1], ids_BT)
    assert (mixed[0] - expected[0]).abs().mean() < 0.02 * expected.abs().mean()


def test_a_linear_layer_with_a_bias_keeps_it(load: Load, ids_BT: Tensor) -> None:
    base = load("llama")
    projection = base.model.model.layers[0].self_attn.q_proj
    projection.bias = nn.Parameter(torch.ones(projection.out_features))
    before = base.model(ids_BT).logits
    LoraLayers.install(base)
    assert torch.equal(base.model(ids_BT).logits, before)
