"""Settings of an optimizer step as the Tinker SDK sends them, with the defaults of its wire."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import training_pb2

# AdamParams of the SDK.
_ADAM = {
    "learning_rate": 1e-4,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-12,
    "weight_decay": 0.0,
    "grad_clip_norm": 0.0,
}


def check_optimizer(config: Mapping[str, Any] | None) -> None:
    """Refuses the `optimizer_config` of a new model that asks for another optimizer than AdamW.

    Of "dimuon" it is known that its momentum is orthogonalised and has a preconditioner by rows and columns, and not
    how: what we would put under that name would train something else.

    Raises:
        InvalidInput: naming the field.
    """
    kind = "adamw" if config is None else config.get("type", "adamw")
    if kind != "adamw":
        raise InvalidInput(
            f"{kind!r} is no optimizer of this server", field="optimizer_config.type", hint="use 'adamw'"
        )


def to_optim_step(body: Mapping[str, Any]) -> training_pb2.OptimStepRequest:
    """From the body of `optim_step`: its `adam_params`, or `optimizer_params` of type "adamw".

    Raises:
        InvalidInput: naming the field, as `adam_params.beta1`.
    """
    field, given = _params(body)
    settings = dict(_ADAM)
    for key, value in given.items():
        if key == "type":
            continue
        if key not in settings:
            raise InvalidInput("no such setting", field=f"{field}.{key}", hint=f"there are {', '.join(_ADAM)}")
        settings[key] = _number(value, field=f"{field}.{key}")
    for key in ("beta1", "beta2"):
        if not 0 <= settings[key] < 1:
            raise InvalidInput(f"{settings[key]} is not in [0, 1)", field=f"{field}.{key}")
    for key in ("learning_rate", "weight_decay", "grad_clip_norm"):
        if settings[key] < 0:
            raise InvalidInput(f"{settings[key]} is negative", field=f"{field}.{key}")
    if settings["eps"] <= 0:
        raise InvalidInput(f"{settings['eps']} is not positive", field=f"{field}.eps")
    return training_pb2.OptimStepRequest(**settings)


def _params(body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """What was given, and under which name."""
    present = [key for key in ("adam_params", "optimizer_params") if body.get(key) is not None]
    if len(present) != 1:
        raise InvalidInput("give adam_params or optimizer_params, one of them", field="adam_params")
    [field] = present
    given = body[field]
    if not isinstance(given, Mapping):
        raise InvalidInput("not an object", field=field)
    if given.get("type", "adamw") != "adamw":
        raise InvalidInput(
            f"this model was created with 'adamw', and the step is of {given['type']!r}", field=f"{field}.type"
        )
    return field, given


def _number(value: object, *, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"{value!r} is not a number", field=field)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidInput(f"{number} is not a finite number", field=field)
    return number
