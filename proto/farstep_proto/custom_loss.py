"""A loss that somebody else wrote, as data: a graph of named operations on tensors, checked before anything runs it.

It is what `torch.fx` records of a function of one datum, node by node. Here it is read: every name, reference and
number is looked at, and an operation that is not listed is refused. What the operations do is in
`farstep_model.custom_loss`; nothing here knows torch, and nothing of a graph is ever looked up as an attribute or
imported.

Invariant: of a graph that was read, every reference is to an earlier node, and every target is one of `OPERATIONS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from farstep_proto.custom_operations import DTYPES, KEYWORDS, OPERATIONS
from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import training_pb2

MAX_NODES = 256
MAX_BYTES = 64 << 10
MAX_INPUTS = 16
MAX_METRICS = 64
_MAX_DEPTH = 8
_MAX_INT = 1 << 53
_INPUT = re.compile(r"[a-z_][a-z0-9_]{0,63}\Z")
_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)\Z")

# What functions have for compatibility, and what says where a tensor lies: left out, as if not said.
_IGNORED = frozenset({"size_average", "reduce", "_stacklevel", "inplace", "device", "layout", "memory_format", "copy"})


@dataclass(frozen=True, slots=True)
class Ref:
    """What an earlier node came to."""

    name: str


@dataclass(frozen=True, slots=True)
class DtypeName:
    name: str


@dataclass(frozen=True, slots=True)
class Node:
    """`target` is an input's name, one of `OPERATIONS`, or "output". Arguments hold numbers, text, None, slices,
    Ellipsis, `Ref`, `DtypeName`, and lists, tuples and dicts of these."""

    op: Literal["placeholder", "function", "method", "output"]
    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CustomLoss:
    """A loss of one datum: its log-probabilities and the inputs that it names, in that order; `ranks` of all of them.

    `loss` and `metrics` say which nodes it comes to; `message` is what it was read from.
    """

    name: str
    ranks: Mapping[str, int]
    nodes: tuple[Node, ...]
    loss: str
    metrics: Mapping[str, str]
    message: bytes

    @classmethod
    def from_proto(cls, message: training_pb2.CustomLoss, *, field: str = "custom_loss") -> CustomLoss:
        """Raises InvalidInput, naming the node."""
        ranks = _ranks(message.inputs, field=f"{field}.inputs")
        nodes = _nodes(message.nodes, list(ranks), field=f"{field}.graph")
        loss, metrics = _results(nodes[-1], field=f"{field}.graph")
        return cls(message.name, ranks, nodes, loss, metrics, message.SerializeToString(deterministic=True))

    def to_proto(self) -> training_pb2.CustomLoss:
        return training_pb2.CustomLoss.FromString(self.message)

    @property
    def input_names(self) -> tuple[str, ...]:
        """What it takes beside the log-probabilities."""
        return tuple(name for name in self.ranks if name != "logprobs")


def _ranks(inputs: Sequence[training_pb2.CustomLossInput], *, field: str) -> dict[str, int]:
    if not 1 <= len(inputs) <= MAX_INPUTS or inputs[0].name != "logprobs":
        raise InvalidInput(f"there are 1 to {MAX_INPUTS}, and the first is logprobs", field=field)
    ranks: dict[str, int] = {}
    for index, given in enumerate(inputs):
        if not _INPUT.match(given.name) or given.name in ranks:
            raise InvalidInput(f"{given.name!r} is no name, or there twice", field=f"{field}[{index}].name")
        if given.rank not in ((1, 2) if given.name in ("logprobs", "target_tokens") else (0, 1, 2)):
            raise InvalidInput(f"{given.rank} is no rank of {given.name}", field=f"{field}[{index}].rank")
        ranks[given.name] = given.rank
    return ranks


def _nodes(data: bytes, inputs: Sequence[str], *, field: str) -> tuple[Node, ...]:
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{len(data)} bytes are more than {MAX_BYTES}", field=field)
    try:
        listed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"not JSON: {error}", field=field) from error
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_NODES:
        raise InvalidInput(f"not a list of 1 to {MAX_NODES} nodes", field=field)
    known: set[str] = set()
    nodes = []
    for index, given in enumerate(listed):
        node = _node(given, known, field=f"{field}.nodes[{index}]")
        if node.name in known:
            raise InvalidInput(f"{node.name!r} is there twice", field=f"{field}.nodes[{index}].name")
        if (node.op == "output") != (index == len(listed) - 1):
            raise InvalidInput("the output is the last node, and no other", field=f"{field}.nodes[{index}].op")
        known.add(node.name)
        nodes.append(node)
    if [node.target for node in nodes if node.op == "placeholder"] != list(inputs):
        raise InvalidInput(f"its inputs are not {', '.join(inputs)}", field=field)
    return tuple(nodes)


def _node(given: object, known: set[str], *, field: str) -> Node:
    if not isinstance(given, dict):
        raise InvalidInput("not an object", field=field)
    op, name, target = given.get("op"), given.get("name"), given.get("target")
    args, kwargs = given.get("args", []), given.get("kwargs", {})
    if not (isinstance(name, str) and isinstance(target, str) and isinstance(args, list) and isinstance(kwargs, dict)):
        raise InvalidInput("a node has a name, a target, a list of args and an object of kwargs", field=field)
    read_args = tuple(_argument(arg, known, field=f"{field}.args") for arg in args)
    read_kwargs = {}
    for key, value in kwargs.items():
        if key in _IGNORED or (value is None and key not in KEYWORDS):
            continue
        if key not in KEYWORDS and op != "output":
            raise InvalidInput(f"{key!r} cannot be given", field=f"{field}.kwargs")
        read_kwargs[key] = _argument(value, known, field=f"{field}.kwargs.{key}")
    match op:
        case "placeholder" | "output":
            return Node(op, name, target, read_args, {})
        case "call_function":
            return Node("function", name, _listed(_operation(target), target, field=field), read_args, read_kwargs)
        case "call_method":
            # no method is called "getattr", or has a dot in its name
            method = target if target.isidentifier() and target != "getattr" else ""
            return Node("method", name, _listed(method, target, field=field), read_args, read_kwargs)
        case _:
            raise InvalidInput(f"{op!r} is no kind of node that is taken", field=f"{field}.op")


def _operation(target: str) -> str:
    """The name that a function has in `OPERATIONS`."""
    if target in ("getattr", "builtins.getattr"):
        return "getattr"
    if target.startswith(("operator.", "math.")):
        return target
    return target.rpartition(".")[2] if target.startswith("torch.") else target


def _listed(operation: str, target: str, *, field: str) -> str:
    if operation not in OPERATIONS:
        raise InvalidInput(
            f"{target!r} is not among the operations that a custom loss may use", field=f"{field}.target"
        )
    return operation


def _argument(given: Any, known: set[str], *, field: str, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise InvalidInput("too deep", field=field)
    match given:
        case None | bool() | str():
            return given
        case int() | float():
            return _number(given, field=field)
        case list():
            return [_argument(each, known, field=field, depth=depth + 1) for each in given]
        case dict() if len(given) == 1:
            [(kind, value)] = given.items()
            return _marked(kind, value, known, field=field, depth=depth + 1)
        case _:
            raise InvalidInput("no kind of argument that is known", field=field)


def _number(given: float, *, field: str) -> float:
    if isinstance(given, int) and abs(given) > _MAX_INT:
        raise InvalidInput(f"a number of {given.bit_length()} bits", field=field)
    return given


def _marked(kind: str, value: Any, known: set[str], *, field: str, depth: int) -> Any:  # noqa: C901
    """What JSON has no form for: an object with one key, which says what it is."""

    def read(each: Any) -> Any:
        return _argument(each, known, field=field, depth=depth)

    if kind == "ref" and value not in known:
        raise InvalidInput(f"{value!r} is no earlier node", field=field)
    match kind, value:
        case "ref", str():
            return Ref(value)
        case "tuple", list():
            return tuple(read(each) for each in value)
        case "dict", dict():
            return {str(key): read(each) for key, each in value.items()}
        case "slice", [start, stop, step]:
            return slice(read(start), read(stop), read(step))
        case "ellipsis", True:
            return ...
        case "float", "inf" | "-inf" | "nan":
            return float(value)
        case "dtype", str() if value in DTYPES:
            return DtypeName(value)
        case "device" | "layout" | "memory_format", str():
            return None
        case _:
            raise InvalidInput(f"{kind!r} is no argument that is known", field=field)


def _results(output: Node, *, field: str) -> tuple[str, dict[str, str]]:
    match output.args:
        case ([Ref(loss), dict() as metrics],):
            pass
        case _:
            raise InvalidInput("it does not come to a loss and its metrics", field=field)
    if len(metrics) > MAX_METRICS:
        raise InvalidInput(f"{len(metrics)} metrics are more than {MAX_METRICS}", field=field)
    named = {}
    for key, value in metrics.items():
        if not _METRIC.match(key) or not isinstance(value, Ref):
            raise InvalidInput(
                f"{key!r} is not a metric", field=field, hint="custom/<name>:sum or custom/<name>:mean, a tensor"
            )
        named[key] = value.name
    return loss, named
