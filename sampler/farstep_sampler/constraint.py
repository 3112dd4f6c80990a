"""What a request wants its text to match: checked for shape and size before anything is compiled.

It knows no grammar library and no tokenizer, so that a router can refuse what a replica would refuse. What is left
to find out, whether the library can compile it, is `grammars`'.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.repetition import MAX_REPEATED, num_characters

Kind = Literal["json_schema", "regex", "grammar", "choice"]
KINDS: tuple[Kind, ...] = ("json_schema", "regex", "grammar", "choice")

MAX_BYTES = 64 << 10
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Constraint:
    """`text` is the schema as JSON, the expression, the grammar, or the choices as a JSON list of strings."""

    kind: Kind
    text: str

    @property
    def field(self) -> str:
        return f"params.{self.kind}"


def constraint_of(params: pb.SamplingParams) -> Constraint | None:
    """Raises InvalidInput: more than one is given, or one that is too large or nests too deep."""
    given = [kind for kind in KINDS if (params.choice if kind == "choice" else params.HasField(kind))]
    if not given:
        return None
    kind = given[0]
    if len(given) > 1:
        raise InvalidInput(f"give {kind} or {given[1]}, not both", field=f"params.{given[1]}")
    text = _choices(params) if kind == "choice" else str(getattr(params, kind))
    constraint = Constraint(kind, text)
    num_bytes = len(text.encode())
    if num_bytes > MAX_BYTES:
        raise InvalidInput(f"{num_bytes} bytes, at most {MAX_BYTES}", field=constraint.field)
    if not text.strip() and kind != "regex":
        raise InvalidInput("is empty", field=constraint.field)
    for expression in _expressions(constraint):
        if (repeated := num_characters(expression)) > MAX_REPEATED:
            raise InvalidInput(
                f"stands for {repeated} characters with its repetitions written out, at most {MAX_REPEATED}",
                field=constraint.field,
                hint="use * or +, or a smaller bound",
            )
    return constraint


def _choices(params: pb.SamplingParams) -> str:
    for index, choice in enumerate(params.choice):
        if not choice:
            raise InvalidInput("an empty string is no choice", field=f"params.choice[{index}]")
    return json.dumps(list(dict.fromkeys(params.choice)), ensure_ascii=False)


def _expressions(constraint: Constraint) -> Iterator[str]:
    """The regular expressions in it; those of a grammar are looked at with its rules, when it is compiled."""
    match constraint.kind:
        case "regex":
            yield constraint.text
        case "json_schema":
            yield from _patterns(_schema(constraint), depth=0, field=constraint.field)


def _schema(constraint: Constraint) -> object:
    try:
        schema = json.loads(constraint.text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"is not JSON: {error}", field=constraint.field) from error
    if not isinstance(schema, dict | bool):
        raise InvalidInput("a schema is an object, true or false", field=constraint.field)
    return schema


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _patterns(node: object, *, depth: int, field: str) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"nests deeper than {MAX_DEPTH}", field=field)
    if isinstance(node, dict):
        if isinstance(pattern := node.get("pattern"), str):
            yield pattern
        if isinstance(by_pattern := node.get("patternProperties"), dict):
            yield from by_pattern
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _patterns(child, depth=depth + 1, field=field)
