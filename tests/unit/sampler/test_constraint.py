"""What is refused before any grammar library sees it."""

import contextlib
import json
import time

import pytest

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.constraint import MAX_BYTES, Constraint, constraint_of


def refused(**fields: object) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        constraint_of(pb.SamplingParams(**fields))
    return caught.value


def test_each_kind() -> None:
    assert constraint_of(pb.SamplingParams()) is None
    assert constraint_of(pb.SamplingParams(regex="a+")) == Constraint("regex", "a+")
    assert constraint_of(pb.SamplingParams(json_schema="{}")) == Constraint("json_schema", "{}")
    assert constraint_of(pb.SamplingParams(grammar='start: "a"')) == Constraint("grammar", 'start: "a"')
    assert constraint_of(pb.SamplingParams(choice=["b", "a", "b"])) == Constraint("choice", '["b", "a"]')


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"regex": "a", "choice": ["b"]}, "params.choice", "give regex or choice, not both"),
        ({"regex": "a", "json_schema": "{}"}, "params.regex", "not both"),
        ({"regex": "a" * (MAX_BYTES + 1)}, "params.regex", f"at most {MAX_BYTES}"),
        ({"grammar": " \n"}, "params.grammar", "empty"),
        ({"choice": ["a", ""]}, "params.choice[1]", "empty"),
        ({"json_schema": "{"}, "params.json_schema", "not JSON"),
        ({"json_schema": '{"minimum": NaN}'}, "params.json_schema", "NaN"),
        ({"json_schema": "3"}, "params.json_schema", "an object"),
        ({"json_schema": "[" * 20_000}, "params.json_schema", "JSON"),
        ({"json_schema": '{"items":' * 70 + "{}" + "}" * 70}, "params.json_schema", "deeper than 64"),
        ({"regex": "x((a{1000}){1000})"}, "params.regex", "1000001 characters"),
        ({"regex": f"a{{{'9' * 5000}}}"}, "params.regex", "repetitions"),
        ({"json_schema": json.dumps({"items": {"pattern": "(a{300}){300}"}})}, "params.json_schema", "repetitions"),
        ({"json_schema": json.dumps({"patternProperties": {"(a{300}){300}": {}}})}, "params.json_schema", "repet"),
    ],
)
def test_what_is_refused(fields: dict[str, object], field: str, says: str) -> None:
    error = refused(**fields)
    assert error.field == field
    assert says in error.message


def test_the_largest_text_is_looked_at_quickly() -> None:
    """What costs is bounded: the event loop does this. A second is a hundred times what it takes here."""
    for text in ("(" * MAX_BYTES, "[" * MAX_BYTES, "a{1}" * (MAX_BYTES // 4), "\\" * MAX_BYTES):
        began_at = time.perf_counter()
        with contextlib.suppress(InvalidInput):
            constraint_of(pb.SamplingParams(regex=text))
        assert time.perf_counter() - began_at < 1
