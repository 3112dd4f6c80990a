"""Products of frozen layers against plain torch: values, gradients, and the same bits for the same call."""

import pytest
import torch
from torch.nn import functional

from farstep_model import products
from farstep_model.products import adapted_linear, add_product, frozen_linear, product

SMALL, LARGE = (2, 5, 12, 8), (4, 256, 96, 160)  # rows, positions, inputs, outputs
RANK = 8


def tensors(shape, *, dtype=torch.float32, bias=True):
    rows, positions, inputs, outputs = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=dtype)

    x = draw(rows, positions, inputs).requires_grad_()
    a, b = draw(RANK, inputs).requires_grad_(), draw(outputs, RANK).requires_grad_()
    return x, draw(outputs, inputs), draw(outputs) if bias else None, a, b


def plain(x, weight, bias, a, b, scaling):
    return functional.linear(x, weight, bias) + scaling * functional.linear(functional.linear(x, a), b)


def test_the_large_shape_is_one_for_onednn_where_there_is_one():
    rows, positions, inputs, outputs = LARGE
    x, weight = torch.zeros(rows * positions, inputs), torch.zeros(outputs, inputs)
    assert products._is_for_onednn(x, weight) == products.HAS_ONEDNN
    assert not products._is_for_onednn(x.double(), weight.double())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_adapted_linear_is_plain_torch(shape, bias):
    x, weight, bias_O, a, b = tensors(shape, bias=bias)
    upstream = torch.randn(*shape[:2], shape[3], generator=torch.Generator().manual_seed(1))
    found = adapted_linear(x, weight, bias_O, a, b, scaling=0.5)
    doubles = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in (x, a, b)]
    wide = plain(doubles[0], weight.double(), None if bias_O is None else bias_O.double(), *doubles[1:], 0.5)
    torch.testing.assert_close(found.double(), wide, rtol=1e-5, atol=1e-4)
    gradients = torch.autograd.grad(found, (x, a, b), upstream)
    expected = torch.autograd.grad(wide, doubles, upstream.double())
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert gradient.shape == wanted.shape
        assert (gradient.double() - wanted).norm() <= 1e-6 * wanted.norm()


def test_gradients_in_double_precision():
    x, weight, bias, a, b = tensors(SMALL, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *leaves: adapted_linear(leaves[0], weight, bias, *leaves[1:], scaling=2.0), (x, a, b)
    )
    assert torch.autograd.gradcheck(lambda leaf: frozen_linear(leaf, weight, bias), (x,))


def test_an_input_without_gradient_gets_none():
    x, weight, bias, a, b = tensors(SMALL)
    out = adapted_linear(x.detach(), weight, bias, a, b, scaling=1.0)
    expected = torch.autograd.grad(plain(x.detach(), weight, bias, a, b, 1.0).sum(), (a, b))
    torch.testing.assert_close(torch.autograd.grad(out.sum(), (a, b)), expected)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_products_add_and_repeat(shape):
    x, weight, bias, *_ = (t.detach() for t in tensors(shape))
    x_NI = x.flatten(0, 1)
    once = product(x_NI, weight, bias)
    torch.testing.assert_close(once, functional.linear(x_NI, weight, bias), rtol=1e-5, atol=1e-4)
    assert torch.equal(once, product(x_NI.clone(), weight.clone(), bias))
    added = add_product(once.clone(), x_NI, weight, scaling=0.25)
    torch.testing.assert_close(added, once + 0.25 * functional.linear(x_NI, weight), rtol=1e-5, atol=1e-4)
    back = product(once, weight.T)  # as a gradient goes: a view, not a copy
    torch.testing.assert_close(back, once @ weight, rtol=1e-5, atol=1e-3)
