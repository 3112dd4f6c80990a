"""Rows that a function of the user's gives: `module:function`, or the function itself."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from farstep.trainers.data.sources.base import Row, Source
from farstep.trainers.errors import DataError


class Function(Source):
    name = "callable"

    def rows(self) -> Sequence[Row]:
        function = resolve(self.config.function, field="function")
        given = function(**self.config.kwargs)
        if isinstance(given, Mapping | str | bytes) or not isinstance(given, Iterable):
            raise DataError(f"gave {type(given).__name__}, not rows", field=_named(function))
        return given if isinstance(given, Sequence) else list(given)

    def fingerprint(self) -> str:
        """The function's own text: what it calls may change unseen, for which there is `version`."""
        function = resolve(self.config.function, field="function")
        try:
            text = inspect.getsource(function)
        except (OSError, TypeError):
            text = ""
        return hashlib.sha256(f"{_named(function)}\n{text}".encode()).hexdigest()


def resolve(function: str | Callable[..., Any], *, field: str) -> Callable[..., Any]:
    """
    Raises:
        DataError: no such module or attribute, or nothing that can be called.
    """
    if not isinstance(function, str):
        return function
    module_name, _, path = function.partition(":")
    try:
        found: Any = import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise DataError(f"cannot load {function!r}: {error}", field=field) from error
    if not callable(found):
        raise DataError(f"{function!r} is {type(found).__name__}, and cannot be called", field=field)
    return found  # type: ignore[no-any-return]


def _named(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"
