"""Schemathesis over a server's own document: requests that it generates, answers that it checks.

Two of its checks are left out. What a schema allows is not always right (names, losses and shapes are checked against
each other), and protobuf's JSON takes more than a schema says (numbers in quotation marks, null for a default).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from farstep_proto import paths
from tests.fuzz.campaign import Target
from tests.fuzz.messages import FIELDS
from tests.fuzz.requests import LEFT_OUT

CHECKS = [
    not_a_server_error, content_type_conformance, status_code_conformance, response_schema_conformance,
    response_headers_conformance, ignored_auth, unsupported_method,
]  # fmt: skip
_COSTLY = {"wait_s", "gate_wait_s", "max_tokens", "num_samples", "replicas", "sampler_replicas", "n", "url"}


@cache
def _know_protobuf() -> None:
    schemathesis.openapi.media_type(paths.PROTOBUF, st.binary(max_size=64))

    @schemathesis.serializer(paths.PROTOBUF)
    def as_it_is(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
        return value if isinstance(value, bytes) else b""


def attack_by_schema(target: Target, *, examples: int, number: int) -> tuple[int, list[str]]:
    """How many requests were sent, and what failed; `examples` are those of each operation."""
    _know_protobuf()
    schema = schemathesis.openapi.from_url(f"{target.url}{paths.OPENAPI}")
    sent, failures = 0, []
    for result in schema.get_all_operations():
        operation = result.ok()
        if (operation.method.upper(), operation.path) in LEFT_OUT:
            continue

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def send(case: schemathesis.Case) -> None:
            nonlocal sent
            sent += 1
            _tame(case, target)
            headers = {"Authorization": f"Bearer {target.key}"}
            case.call_and_validate(base_url=target.url, headers=headers, checks=CHECKS, timeout=60)

        try:
            send()
        except (Exception, BaseExceptionGroup) as error:
            failures.append(f"{operation.method.upper()} {operation.path}: {_text_of(error)}")
    return sent, failures


def _tame(case: schemathesis.Case, target: Target) -> None:
    """Puts known ids where there are some, and harmless values where others would cost minutes."""
    rng = random.Random(repr(case.body) + repr(case.path_parameters))
    for name in case.path_parameters or {}:
        if target.ids.get(name) and rng.random() < 0.6:
            case.path_parameters[name] = rng.choice(target.ids[name])
    if isinstance(case.query, dict) and "wait_s" in case.query:
        case.query["wait_s"] = 0
    _tame_body(case.body, rng, names=("base_model",) if target.name == "control plane" else ())


def _tame_body(body: Any, rng: random.Random, *, names: Sequence[str]) -> None:
    if not isinstance(body, dict):
        return
    for name, value in list(body.items()):
        if name in _COSTLY:
            body[name] = _number(rng.choice([each for each in FIELDS.get(name, (1,)) if each == each]))
        elif name in names:
            body[name] = rng.choice(("", "../x", "\0"))
        else:
            _tame_body(value, rng, names=names)
    if "prompt" in body and isinstance(body.get("params", {}), dict):
        body.setdefault("params", {}).setdefault("max_tokens", 2)


def _number(value: Any) -> Any:
    return {float("inf"): "Infinity", float("-inf"): "-Infinity"}.get(value, value)


def _text_of(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return " | ".join(_text_of(each) for each in error.exceptions)
    return str(error)[:1500]
