"""Adam against torch's own, with settings that change from step to step."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from farstep_proto.errors import InvalidInput, ModelError
from farstep_worker.optim import Optimizer
from farstep_worker.submission import AdamSettings

SETTINGS = AdamSettings(1e-2, 0.9, 0.95, 1e-12, 0.0, 0.0)
SHAPES = ((3, 5), (7,), (2, 2))


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step, scale=1.0):
    generator = torch.Generator().manual_seed(100 + step)
    return [scale * torch.randn(shape, generator=generator) for shape in SHAPES]


def optimizer(own):
    return Optimizer([f"p{i}" for i in range(len(own))], own)


def test_steps_are_those_of_adamw_with_the_settings_of_each_call():
    own, theirs = parameters(), parameters()
    ours = optimizer(own)
    reference = torch.optim.AdamW(theirs, foreach=False, fused=False)
    for step in range(6):
        settings = dataclasses.replace(
            SETTINGS, learning_rate=1e-2 / (step + 1), beta1=0.5 + 0.05 * step, weight_decay=0.1, grad_clip_norm=2.0
        )
        for group in reference.param_groups:
            group.update(
                lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.eps, weight_decay=0.1
            )
        for parameter, gradient in zip(theirs, gradients(step), strict=True):
            parameter.grad = gradient
        expected_norm = torch.nn.utils.clip_grad_norm_(theirs, 2.0).item()
        reference.step()
        assert ours.step(gradients(step), settings) == pytest.approx(expected_norm, rel=1e-6)
    assert expected_norm > 2.0  # clipped, and reported from before
    for a, b in zip(own, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_no_clipping_without_a_limit_or_below_it():
    results = []
    for limit in (0.0, 1e6):
        own = parameters()
        optimizer(own).step(gradients(0), dataclasses.replace(SETTINGS, grad_clip_norm=limit))
        results.append(own)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_state_goes_through_bytes_bit_for_bit():
    straight, first = parameters(), parameters()
    one, two = optimizer(straight), optimizer(first)
    for step in range(6):
        one.step(gradients(step), SETTINGS)
    for step in range(3):
        two.step(gradients(step), SETTINGS)
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    three = optimizer(second)
    three.load_state_bytes(two.state_bytes())
    for step in range(3, 6):
        three.step(gradients(step), SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(straight, second, strict=True))
    assert three.state_bytes() == one.state_bytes()


def test_state_before_the_first_step_is_a_fresh_optimizer():
    one, two = parameters(), parameters()
    loaded = optimizer(one)
    loaded.step(gradients(0), dataclasses.replace(SETTINGS, learning_rate=0))  # moments that must go
    loaded.load_state_bytes(optimizer(parameters()).state_bytes())
    loaded.step(gradients(1), SETTINGS)
    optimizer(two).step(gradients(1), SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("data", [b"", b"no safetensors at all"])
def test_broken_state_is_refused(data):
    with pytest.raises(InvalidInput):
        optimizer(parameters()).load_state_bytes(data)


def test_state_of_other_parameters_is_refused():
    other = optimizer([nn.Parameter(torch.zeros(4))])
    other.step([torch.ones(4)], SETTINGS)
    with pytest.raises(InvalidInput, match="other parameters"):
        optimizer(parameters()).load_state_bytes(other.state_bytes())


def test_a_parameter_without_a_gradient_sits_the_step_out():
    """Against torch, where it has no `.grad`: neither weight nor moments nor its count of steps change."""
    own, theirs = parameters(), parameters()
    ours = optimizer(own)
    settings = dataclasses.replace(SETTINGS, weight_decay=0.1, grad_clip_norm=1.0)
    reference = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.1, fused=True)
    for step, absent in enumerate((0, None, 2, 0, None)):
        before = [parameter.detach().clone() for parameter in own]
        given = [None if index == absent else gradient for index, gradient in enumerate(gradients(step))]
        for parameter, gradient in zip(theirs, given, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0).item()
        reference.step()
        assert ours.step(given, settings) == pytest.approx(norm)
        assert all(torch.equal(a, b) == (index == absent) for index, (a, b) in enumerate(zip(own, before, strict=True)))
        assert all(torch.equal(a, b) for a, b in zip(own, theirs, strict=True))
        # in the midst, through bytes: the step of each comes along
        ours, data = optimizer(own), ours.state_bytes()
        ours.load_state_bytes(data)
        assert ours.state_bytes() == data


def test_a_gradient_that_is_not_finite_changes_nothing():
    own, untouched = parameters(), parameters()
    ours = optimizer(own)
    bad = gradients(0)
    bad[1][3] = math.nan
    with pytest.raises(ModelError, match="nan"):
        ours.step(bad, SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(own, untouched, strict=True))
