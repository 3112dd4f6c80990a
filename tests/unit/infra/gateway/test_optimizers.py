"""Settings of a step: the SDK's own objects and defaults, and everything that is no setting."""

import math

import pytest
import tinker

from farstep_infra.gateway.optimizers import check_optimizer, to_optim_step
from farstep_proto.errors import InvalidInput


def refused(body):
    with pytest.raises(InvalidInput) as caught:
        to_optim_step(body)
    return caught.value


def test_what_the_sdk_sends() -> None:
    params = tinker.AdamParams(learning_rate=0.01, beta1=0.8, beta2=0.9, eps=1e-8, weight_decay=0.1, grad_clip_norm=1.0)
    step = to_optim_step({"model_id": "m", "seq_id": 2, "adam_params": params.model_dump()})
    assert {field.name: getattr(step, field.name) for field in step.DESCRIPTOR.fields} == params.model_dump()


def test_defaults_are_the_sdks() -> None:
    step = to_optim_step({"adam_params": {}})
    assert {
        field.name: getattr(step, field.name) for field in step.DESCRIPTOR.fields
    } == tinker.AdamParams().model_dump()


@pytest.mark.parametrize("key", ["learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, "0.1", True, None, [0.1], 10**400])
def test_what_is_no_setting_is_refused_by_name(key: str, value: object) -> None:
    assert refused({"adam_params": {key: value}}).field == f"adam_params.{key}"


@pytest.mark.parametrize(("key", "value"), [("beta1", 1.0), ("beta2", 1), ("eps", 0.0), ("momentum", 0.9)])
def test_outside_its_range(key: str, value: float) -> None:
    assert refused({"adam_params": {key: value}}).field == f"adam_params.{key}"


@pytest.mark.parametrize(
    "body", [{}, {"adam_params": None}, {"adam_params": {}, "optimizer_params": {"type": "adamw"}}]
)
def test_one_of_the_two_is_given(body) -> None:
    assert refused(body).field == "adam_params"


def test_not_an_object() -> None:
    assert refused({"optimizer_params": [1]}).field == "optimizer_params"


def test_a_step_of_another_optimizer() -> None:
    dimuon = tinker.types.DimuonParams(learning_rate=0.1)
    assert refused({"optimizer_params": dimuon.model_dump()}).field == "optimizer_params.type"


def test_models_with_another_optimizer_are_refused() -> None:
    check_optimizer(None)
    check_optimizer(tinker.types.AdamOptimizerConfig().model_dump())
    with pytest.raises(InvalidInput) as caught:
        check_optimizer({"type": "sgd"})
    assert caught.value.field == "optimizer_config.type"
