"""Passes over packed rows: the numbers of one datum, or one pair, at a time, without padding or packing."""

import dataclasses

import numpy as np
import pytest
import torch

from farstep_model.adapter import Adapter
from farstep_model.load import load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.packed import enable_packing
from farstep_model.spec import LoraSpec
from farstep_proto.loss_table import LOSS_TABLE
from farstep_worker import gradients
from farstep_worker.gradients import run_pass
from farstep_worker.micro_batch import MicroBatch, plan
from farstep_worker.submission import Example, Pass
from tests.support.tiny_models import write_model
from tests.unit.worker.test_gradients import check_against_reference, distance

BUDGET = 24
# One is as long as the budget, one longer, several of one token; all beyond the sliding windows of 4.
LENGTHS = (24, 1, 9, 30, 1, 1, 12, 7)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Layers of a model by kind: packed, and an untouched copy."""
    root = tmp_path_factory.mktemp("models")
    loaded = {}

    def load(kind):
        if kind not in loaded:
            name = "farstep/tiny"
            if kind != "embedded":
                name = str(root / kind)
                write_model(kind, root / kind)
            bases = [load_base_model(name, device="cpu") for _ in range(2)]
            enable_packing(bases[0])
            loaded[kind] = [LoraLayers.install(base) for base in bases]
        return loaded[kind]

    return load


def warm_adapter(layers, **spec):
    """The same noise for the same layers, so that every gradient is there."""
    adapter = Adapter.init(layers, LoraSpec(4, **spec), seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return adapter


def valid(call, vocab_size):
    """Within the vocabulary, and with a token of each sequence that counts."""
    for example in call.examples:
        example.tokens[:] = 3 + example.tokens % (vocab_size - 3)
        targets = example.inputs["target_tokens"]
        if len(targets) == 1:
            targets[:] = 77  # a single token counts too
        targets[:] = np.where(targets < 0, targets, 3 + targets % (vocab_size - 3))
        if "weights" in example.inputs and LOSS_TABLE[call.loss_fn].grouping != "token":
            example.inputs["weights"][:] = 1
    return call


def one_by_one(adapter, call):
    """Sums over passes of one datum or pair each."""
    together = LOSS_TABLE[call.loss_fn].num_data
    parts = [call.examples[at : at + together] for at in range(0, len(call.examples), together)]
    return [
        run_pass(adapter, dataclasses.replace(call, examples=part), token_budget=1000, dropout_seed=0) for part in parts
    ]


@pytest.mark.parametrize("kind", ["embedded", "llama", "mistral", "gemma2_uncapped", "moe"])
@pytest.mark.parametrize("loss_fn", ["cross_entropy", "ppo", "gspo", "dpo"])
def test_a_packed_pass_is_the_sum_of_its_data(tiny, make_pass, kind, loss_fn):
    packed, plain = tiny(kind)
    call = valid(make_pass(loss_fn, lengths=LENGTHS), plain.base.vocab_size)
    result = run_pass(warm_adapter(packed), call, token_budget=BUDGET, dropout_seed=0, layout="packed")
    alone = one_by_one(warm_adapter(plain), call)
    # fp32: sums in another order; attention, products and reductions add up to some 1e-6
    assert result.loss_sum == pytest.approx(sum(part.loss_sum for part in alone), rel=1e-5)
    assert result.num_active == sum(part.num_active for part in alone)
    expected = [torch.stack(parts).sum(0) for parts in zip(*(part.gradients for part in alone), strict=True)]
    assert distance(result.gradients, [gradient.double() for gradient in expected]) <= 2e-5
    for found, wanted in zip(result.outputs, [array for part in alone for array in part.outputs], strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("loss_fn", sorted(LOSS_TABLE))
def test_every_loss_agrees_with_plain_peft_when_packed(tiny, make_pass, loss_fn):
    adapter = warm_adapter(tiny("embedded")[0], value_head=loss_fn == "value")
    call = valid(make_pass(loss_fn, lengths=(5, 12, 1, 9)), adapter.layers.base.vocab_size)
    result = run_pass(adapter, call, token_budget=BUDGET, dropout_seed=0, layout="packed")
    check_against_reference(adapter, call, [result])


def test_several_candidates_a_position_when_packed(tiny):
    adapter = warm_adapter(tiny("embedded")[0])
    rng = np.random.default_rng(5)
    examples = []
    for length, k in ((6, 3), (4, 1), (9, 3), (1, 3), (5, 0)):
        targets = rng.integers(3, 300, (length, k) if k else (length,))
        targets.flat[-1] = -100
        examples.append(Example(rng.integers(3, 300, length).astype(np.int32), {"target_tokens": targets}))
    call = Pass("cross_entropy", {}, tuple(examples), backward=True)
    result = run_pass(adapter, call, token_budget=BUDGET, dropout_seed=0, layout="packed")
    check_against_reference(adapter, call, [result])


def test_a_forward_pass_packed(tiny, make_pass):
    packed, plain = tiny("llama")
    call = valid(make_pass(lengths=LENGTHS, backward=False), plain.base.vocab_size)
    for off in (False, True):
        found, wanted = (
            run_pass(warm_adapter(layers), call, token_budget=BUDGET, dropout_seed=0, adapter_off=off, layout=layout)
            for layers, layout in ((packed, "packed"), (plain, "padded"))
        )
        assert found.gradients is None
        for a, b in zip(found.outputs, wanted.outputs, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_packed_dropout_is_by_its_seed(tiny, make_pass):
    adapter = warm_adapter(tiny("embedded")[0], dropout=0.5)
    call = make_pass()
    losses = [
        run_pass(adapter, call, token_budget=BUDGET, dropout_seed=seed, layout="packed").loss_sum for seed in (1, 2, 1)
    ]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("loss_fn", sorted(LOSS_TABLE))
def test_nothing_is_read_back_before_the_last_micro_batch(tiny, make_pass, monkeypatch, loss_fn):
    """On a GPU each of these would make the host wait. (Only the loop by sequence reads where sequences begin.)"""
    adapter = warm_adapter(tiny("llama")[0], dropout=0.1, use_dora=True, value_head=loss_fn == "value")
    call = valid(make_pass(loss_fn, lengths=LENGTHS), adapter.layers.base.vocab_size)
    compute, result_of, waited = gradients._compute, gradients.Total.result, []

    def guarded(*args, **kwargs):
        with monkeypatch.context() as patch:
            for name in ("item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__"):
                patch.setattr(torch.Tensor, name, lambda tensor, *args, name=name: pytest.fail(f"{name} waits"))
            return compute(*args, **kwargs)

    def counted(total, *args):
        waited.append(len(total.parts))
        return result_of(total, *args)

    monkeypatch.setattr(gradients, "_compute", guarded)
    monkeypatch.setattr(gradients.Total, "result", counted)
    run_pass(adapter, call, token_budget=BUDGET, dropout_seed=0, layout="packed")
    assert waited == [len(plan(call.examples, BUDGET, num_together=LOSS_TABLE[loss_fn].num_data, layout="packed"))]


def test_a_packed_micro_batch_has_no_padding(make_pass):
    examples = make_pass(lengths=LENGTHS).examples
    batches = plan(examples, BUDGET, num_together=1, layout="packed")
    sizes = [
        MicroBatch.of(examples, indices, device=torch.device("cpu"), layout="packed").token_ids.shape
        for indices in batches
    ]
    assert sum(size[1] for size in sizes) == sum(LENGTHS)
    assert all(size[0] == 1 for size in sizes)
    assert [size[1] for size in sizes] == [30, 24, 21, 10]
