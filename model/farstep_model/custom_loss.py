"""A loss that somebody else wrote, computed: the graph of `farstep_proto.custom_loss`, one node after the other.

Nothing of a graph is evaluated as Python, looked up by its name in a module, or taken from an object as an attribute,
but through the tables here. What a node is about to make is estimated before it is made, so that no graph takes more
memory or time than in proportion to its data: `VALUES_A_LOGPROB` numbers for each log-probability.

Invariant: the same data give the same result or the same error, whoever else is computed beside them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from farstep_proto.custom_loss import CustomLoss, DtypeName, Node, Ref
from farstep_proto.custom_operations import ATTRIBUTES, DTYPES, OPERATIONS
from farstep_proto.errors import InvalidInput

VALUES_A_LOGPROB = 1024
_VALUES_AT_LEAST = 1 << 16
_MAX_INT = 1 << 53

_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
_OPERATORS = {"iadd": operator.add, "isub": operator.sub, "imul": operator.mul, "itruediv": operator.truediv}
_MAY_BE_IN_PLACE = frozenset({"relu", "relu6", "elu", "silu", "leaky_relu"})
_NAMES = {"log_sigmoid": "logsigmoid", "linalg_norm": "norm", "special_xlogy": "xlogy", "ndimension": "dim"}


def evaluate(loss: CustomLoss, logprobs: Tensor, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one datum, a scalar with its graph, and its metrics, detached scalars in fp32.

    Args:
        logprobs: [T] or [T, K], as many dimensions as the loss says.
        inputs: by name, of the ranks that it says.

    Raises:
        InvalidInput: an operation cannot be done with these arguments, would make too much, or the result is none.
    """
    leaf = logprobs.detach().requires_grad_(logprobs.requires_grad)
    run = _Run(leaf, max(_VALUES_AT_LEAST, VALUES_A_LOGPROB * leaf.numel()))
    given = {"logprobs": leaf, **inputs}
    for node in loss.nodes[:-1]:
        run.compute(node, given)
    value = run.scalar(loss.loss).to(leaf.dtype)
    metrics = {name: run.scalar(node).detach().float() for name, node in loss.metrics.items()}
    if not leaf.requires_grad:
        return value, metrics
    # The rest of the way back is the model's: a number with this value and this slope.
    return value.detach() + (_slope(value, leaf) * (logprobs - leaf.detach())).sum(), metrics


def _slope(value: Tensor, leaf: Tensor) -> Tensor:
    if not value.requires_grad:
        raise InvalidInput("the loss does not depend on logprobs", field="loss_fn")
    try:
        return torch.autograd.grad(value, leaf)[0]
    except RuntimeError as error:
        if _is_of_memory(error):
            raise
        raise InvalidInput(f"the loss has no derivative: {_first_line(error)}", field="loss_fn") from error


@dataclass(slots=True, eq=False, init=False)
class _Run:
    """What the nodes came to so far, and how many numbers they may yet come to."""

    values: dict[str, Any]
    remaining: int
    device: torch.device

    def __init__(self, logprobs: Tensor, budget: int) -> None:
        self.values = {}
        self.remaining = budget
        self.device = logprobs.device

    def compute(self, node: Node, given: Mapping[str, Tensor]) -> None:
        if node.op == "placeholder":
            self.values[node.name] = given[node.target]
            return
        args = tuple(self._resolved(arg) for arg in node.args)
        kwargs = {key: self._resolved(value) for key, value in node.kwargs.items()}
        try:
            self._spend(num_values(node.target, args, kwargs))
            value = _function(node, self.device)(*args, **kwargs)
            _check_value(value)
        except InvalidInput as error:
            raise InvalidInput(f"node {node.name!r}, {node.target}: {error.message}", field="loss_fn") from error
        except (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError) as error:
            if _is_of_memory(error):
                raise
            raise InvalidInput(f"node {node.name!r}, {node.target}: {_first_line(error)}", field="loss_fn") from error
        self.values[node.name] = value

    def scalar(self, name: str) -> Tensor:
        value = self.values[name]
        if not isinstance(value, Tensor) or value.dim() != 0:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInput(f"{name!r} is not a scalar tensor but {shape}", field="loss_fn")
        return value

    def _spend(self, num: int) -> None:
        if num > self.remaining:
            raise InvalidInput(f"{num} numbers are more than this graph may still make of these data")
        self.remaining -= num

    def _resolved(self, arg: Any) -> Any:
        match arg:
            case Ref(name):
                return self.values[name]
            case DtypeName(name):
                return _DTYPES[name]
            case slice():
                return slice(*(self._resolved(each) for each in (arg.start, arg.stop, arg.step)))
            case tuple() | list():
                return type(arg)(self._resolved(each) for each in arg)
            case dict():
                raise InvalidInput("a dict can only be what the graph comes to")
            case _:
                return arg


def num_values(operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """No fewer numbers than the operation makes, or multiplies on the way; at least 1."""
    tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
    match OPERATIONS[operation]:
        case "broadcast":
            return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
        case "product":
            contracted = 1 if operation == "outer" or not tensors[0].dim() else max(1, tensors[0].shape[-1])
            return math.prod(tensor.numel() for tensor in tensors) // contracted
        case "index" if operation == "operator.getitem":
            return _num_indexed(*args)
        case "index" if operation == "index_select":
            sizes = [size for tensor in tensors for size in tensor.shape]
            return math.prod(tensor.numel() for tensor in tensors) // max(1, min(sizes, default=1))
        case "together":
            return sum(part.numel() for part in _list_of_tensors(args, kwargs))
        case "stated":
            return _num_stated(operation, args, kwargs)
        case _:
            return max((tensor.numel() for tensor in tensors), default=1)


def _num_indexed(source: Any, index: Any) -> int:
    """Slices and numbers leave less than all; a tensor of integers takes as much as it has, of one dimension."""
    if not isinstance(source, Tensor):
        return 1
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, list | tuple) for part in parts) or sum(isinstance(part, Tensor) for part in parts) > 1:
        raise InvalidInput("one tensor at most can be an index")
    if isinstance(parts[0], Tensor) and parts[0].dtype != torch.bool:
        return parts[0].numel() * (source.numel() // max(1, len(source) if source.dim() else 1))
    if any(isinstance(part, Tensor) and part.dtype != torch.bool for part in parts):
        raise InvalidInput("a tensor of integers can only index the first dimension")
    return source.numel()


def _list_of_tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Tensor]:
    parts = args[0] if args else kwargs.get("tensors")
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Tensor) for part in parts):
        raise InvalidInput("it takes a list of tensors")
    return parts


def _num_stated(operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """What is made of sizes alone, or stretched to them."""
    if operation == "arange":
        return _num_in_range(*args, **{key: kwargs[key] for key in ("start", "end", "step") if key in kwargs})
    source = args[0] if operation == "expand" else None
    if source is not None and not isinstance(source, Tensor):
        raise InvalidInput("it takes a tensor")
    given = {"expand": args[1:], "full": args[:1]}.get(operation, args) or (kwargs.get("size", ()),)
    sizes = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    if not all(isinstance(size, int) for size in sizes):
        raise InvalidInput("sizes are whole numbers")
    if source is not None:  # -1 stands for the size that is there
        kept = max(1, source.numel()) if -1 in sizes else 1
        return kept * math.prod(max(int(size), 1) for size in sizes)
    return math.prod(max(int(size), 0) for size in sizes)


def _num_in_range(*given: Any, start: Any = 0, end: Any = 0, step: Any = 1) -> int:
    """At most: over all that the ends are away from 0."""
    ends, width = (*given[:2], start, end), given[2] if len(given) > 2 else step
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in (*ends, width)) or not width:
        raise InvalidInput("a range has a beginning, an end and a step, all of them numbers")
    return int(sum(map(abs, ends)) / abs(width)) + 1


def _function(node: Node, device: torch.device) -> Callable[..., Any]:
    name = node.target
    if name == "getattr":
        return _attribute
    if name.startswith("operator."):
        return _operator(name.removeprefix("operator."))
    if name.startswith("math."):
        return _math(name.removeprefix("math."))
    if name == "to":
        return _to
    name = _NAMES.get(name, name)
    if OPERATIONS.get(name) == "stated" and name != "expand":
        factory = getattr(torch, name)
        return lambda *args, **kwargs: factory(*args, **kwargs, device=device)
    return _of_tensors(name, is_method=node.op == "method")


def _of_tensors(name: str, *, is_method: bool) -> Callable[..., Any]:
    """The operation as it is called; each name is one of the table's, and is there in torch in one form at least."""
    places = (torch.Tensor, torch, functional) if is_method else (torch, functional, torch.Tensor)
    found: Callable[..., Any] = next(getattr(place, name) for place in places if hasattr(place, name))

    def call(*args: Any, **kwargs: Any) -> Any:
        if is_method and not (args and isinstance(args[0], Tensor)):
            raise InvalidInput("only tensors have methods")
        if OPERATIONS.get(name) != "together" and not any(isinstance(arg, Tensor) for arg in (*args, *kwargs.values())):
            raise InvalidInput("it takes a tensor")
        if name in _MAY_BE_IN_PLACE and True in args[1:]:
            raise InvalidInput("nothing is done in place")
        return found(*args, **kwargs)

    return call


def _attribute(value: Any, name: object) -> Any:
    if not isinstance(name, str) or name not in ATTRIBUTES:
        raise InvalidInput(f"{name!r} cannot be looked at")
    if name in ("values", "indices"):
        if not isinstance(value, tuple) or not hasattr(type(value), "n_fields"):  # what max, sort and their like give
            raise InvalidInput(f"it has no {name}")
        return value[0 if name == "values" else 1]
    if not isinstance(value, Tensor):
        raise InvalidInput("only tensors can be looked at")
    return getattr(value, name)


def _operator(name: str) -> Callable[..., Any]:
    function = _OPERATORS.get(name) or getattr(operator, name)

    def call(*args: Any) -> Any:
        if name == "getitem":
            if not isinstance(args[0], Tensor | tuple | list):
                raise InvalidInput("it has no items")
        elif not all(isinstance(arg, Tensor | bool | int | float) for arg in args):
            raise InvalidInput("it takes tensors and numbers")
        elif name == "pow" and not any(isinstance(arg, Tensor) for arg in args):
            return math.pow(*args)  # of integers it could be as long as one likes
        return function(*args)

    return call


def _math(name: str) -> Callable[..., Any]:
    function = getattr(math, name)

    def call(*args: Any) -> Any:
        if not all(isinstance(arg, int | float) for arg in args):
            raise InvalidInput("it takes numbers, not tensors")
        return function(*args)

    return call


def _to(tensor: object, *args: Any, dtype: torch.dtype | None = None, other: Tensor | None = None) -> Tensor:
    """To another kind of numbers; where they are, they stay."""
    if not isinstance(tensor, Tensor):
        raise InvalidInput("it takes a tensor")
    for arg in (*args, other):
        if isinstance(arg, Tensor):
            dtype = arg.dtype
        elif isinstance(arg, torch.dtype):
            dtype = arg
    return tensor.to(dtype) if dtype is not None else tensor


def _check_value(value: object) -> None:
    match value:
        case Tensor() | bool() | float() | None | torch.dtype() | torch.device():
            return
        case int():
            if abs(value) > _MAX_INT:
                raise InvalidInput("an integer of more than 53 bits")
        case tuple() | list():
            for each in value:
                _check_value(each)
        case _:
            raise InvalidInput(f"it comes to a {type(value).__name__}")


def _is_of_memory(error: Exception) -> bool:
    """Of the machine's and not of the graph's: what to do about it is for others to say."""
    return isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
