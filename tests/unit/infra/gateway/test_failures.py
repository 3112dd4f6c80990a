"""Whose mistake an error is, and in which words the SDK hears of it."""

import inspect

import pytest

from farstep_infra.gateway.failures import Failure, category_of, failure_of, text_of
from farstep_infra.gateway.refusals import Refusals
from farstep_proto import errors
from farstep_proto.errors import ApiError, InvalidInput, ModelError

OURS = {errors.Draining, errors.Unavailable, errors.StorageFull, errors.Internal}
LATER = {errors.BodyTimeout, errors.PolicyNotReady, errors.TooManyRequests}


def test_every_error_has_a_category():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ApiError)]
    assert len(kinds) > 12
    for kind in set(kinds) - {ApiError, ModelError}:
        assert category_of(kind.status) == ("server" if kind in OURS | LATER else "user"), kind


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InvalidInput("missing", field="a.b", hint="give it"), "a.b: missing (give it)"),
        (InvalidInput("missing"), "missing"),
        (InvalidInput("a.b: Field required", field="a.b"), "a.b: Field required"),
        (ModelError("no gradient", error_class="NoGradientError"), "no gradient"),
    ],
)
def test_the_field_and_the_hint_are_told(error, text):
    assert text_of(error.to_proto()) == text
    assert failure_of(error.to_proto()) == Failure(error=text, category="user")


def test_refusals_are_few():
    noted = []
    refusals = Refusals(on_note=noted.append, max_kept=2)
    for name in ("a", "b", "a", "c"):
        refusals.note(name, Failure(error=name, category="user"))
    assert noted == ["a", "b", "a", "c"]
    assert refusals.find("b") is None
    assert refusals.told("a").error == "a"
    assert "forgotten why" in refusals.told("b").error
