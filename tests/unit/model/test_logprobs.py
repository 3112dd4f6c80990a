"""Log-probabilities: the same in chunks as at once, in value and gradient, without the memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from farstep_model.adapter import Adapter
from farstep_model.head import Head
from farstep_model.load import BaseModel
from farstep_model.logprobs import token_logprobs, topk_logprobs
from farstep_model.lora import LoraLayers

Load = Callable[[str], BaseModel]
Make = Callable[..., Adapter]

N, VOCAB = 23, 384
ONE_CHUNK, MANY_CHUNKS = N * VOCAB, 4 * VOCAB


@pytest.fixture
def hidden_ND() -> Tensor:
    return torch.randn(N, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def targets_NK() -> Tensor:
    return torch.randint(VOCAB, (N, 3), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("max_logits", [ONE_CHUNK, MANY_CHUNKS, 1])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere"])
@pytest.mark.parametrize("num_candidates", [0, 3])
def test_values_and_gradients_are_those_of_log_softmax(
    load: Load, hidden_ND: Tensor, targets_NK: Tensor, kind: str, max_logits: int, num_candidates: int
) -> None:
    base = load(kind)
    targets = targets_NK if num_candidates else targets_NK[:, 0]
    upstream = torch.randn(targets.shape, generator=torch.Generator().manual_seed(4))
    hidden_ND.requires_grad_()
    logprobs, entropy_N = token_logprobs(base, hidden_ND, targets, with_entropy=True, max_logits=max_logits)
    (gradient,) = torch.autograd.grad((logprobs * upstream).sum(), hidden_ND)

    all_NV = base.logits(hidden_ND).log_softmax(-1)
    expected = all_NV.gather(-1, targets.reshape(N, -1)).reshape(targets.shape)
    (expected_gradient,) = torch.autograd.grad((expected * upstream).sum(), hidden_ND)
    torch.testing.assert_close(logprobs, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)
    assert entropy_N is not None
    torch.testing.assert_close(entropy_N, -(all_NV.exp() * all_NV).sum(-1), rtol=1e-5, atol=1e-5)
    assert not entropy_N.requires_grad


def test_an_adapted_output_layer_is_recomputed_with_its_adapter(
    layers: LoraLayers, make_adapter: Make, hidden_ND: Tensor, targets_NK: Tensor
) -> None:
    """The backward pass comes after the adapter was put aside, and another is active by then."""
    adapter, other = (make_adapter(layers, seed=seed, train_unembed=True, dropout=0.5) for seed in (1, 2))
    hidden_ND.requires_grad_()

    def run(max_logits: int) -> list[Tensor]:
        torch.manual_seed(0)
        with layers.active([adapter]), layers.training(max_logits == MANY_CHUNKS):
            logprobs, _ = token_logprobs(layers.base, hidden_ND, targets_NK[:, 0], max_logits=max_logits)
        with layers.active([other]):
            return list(torch.autograd.grad(logprobs.sum(), [hidden_ND, *adapter.parameters()[-2:]]))

    with layers.active([adapter]):
        expected = layers.base.logits(hidden_ND).log_softmax(-1).gather(-1, targets_NK[:, :1]).sum()
        reference = torch.autograd.grad(expected, [hidden_ND, *adapter.parameters()[-2:]])
    for got, wanted in zip(run(MANY_CHUNKS - 1), reference, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    dropped = run(MANY_CHUNKS)
    assert not torch.allclose(dropped[1], reference[1], atol=1e-3)
    for got, again in zip(run(MANY_CHUNKS), dropped, strict=True):
        assert torch.equal(got, again)


def test_no_more_logits_than_allowed_exist_at_once(
    load: Load, hidden_ND: Tensor, targets_NK: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load("llama")
    kept: list[int] = []
    sizes: list[int] = []
    finish = Head.finish

    def spy(self: Head, raw: Tensor) -> Tensor:
        sizes.append(raw.numel())
        return finish(self, raw)

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    monkeypatch.setattr(Head, "finish", spy)
    hidden_ND.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logprobs, _ = token_logprobs(base, hidden_ND, targets_NK[:, 0], max_logits=MANY_CHUNKS)
    assert sum(sizes) == N * VOCAB
    assert max(sizes) == MANY_CHUNKS
    # Nothing as wide as the vocabulary waits for the backward pass.
    assert max(kept, default=0) < VOCAB * 4
    logprobs.sum().backward()
    assert sum(sizes) == 2 * N * VOCAB


def test_without_gradients_nothing_is_computed_twice(load: Load, hidden_ND: Tensor, targets_NK: Tensor) -> None:
    with torch.no_grad():
        logprobs, entropy_N = token_logprobs(load("llama"), hidden_ND, targets_NK[:, 0], max_logits=MANY_CHUNKS)
    assert not logprobs.requires_grad
    assert entropy_N is None


def test_no_tokens_give_no_logprobs(load: Load, hidden_ND: Tensor, targets_NK: Tensor) -> None:
    logprobs, entropy_N = token_logprobs(load("llama"), hidden_ND[:0], targets_NK[:0], with_entropy=True)
    assert logprobs.shape == (0, 3)
    assert entropy_N is not None
    assert entropy_N.shape == (0,)


@pytest.mark.parametrize("max_logits", [ONE_CHUNK, MANY_CHUNKS])
def test_topk_is_the_head_of_the_sorted_distribution(load: Load, hidden_ND: Tensor, max_logits: int) -> None:
    base = load("gemma2")
    ids, logprobs = topk_logprobs(base, hidden_ND, 5, max_logits=max_logits)
    expected = base.logits(hidden_ND).log_softmax(-1).topk(5)
    assert torch.equal(ids, expected.indices)
    torch.testing.assert_close(logprobs, expected.values, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_refused(load: Load, hidden_ND: Tensor, targets_NK: Tensor) -> None:
    base = load("llama")
    with pytest.raises(ValueError, match="23 hidden states for 22 targets"):
        token_logprobs(base, hidden_ND, targets_NK[1:])
    for k in (0, VOCAB + 1):
        with pytest.raises(ValueError, match=f"k {k}"):
            topk_logprobs(base, hidden_ND, k)
