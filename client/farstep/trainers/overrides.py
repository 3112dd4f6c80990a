"""Whether what a subclass puts in a method's place can be called as the method is: asked when the class is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from farstep.trainers.errors import TrainerError

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_override(cls: type, name: str, original: Callable[..., Any], own: object) -> None:
    """Refuses a method in whose place it was put but that cannot be called as it is.

    What the original requires has to be taken, under the same name; its options may be left out, and there may be
    more of them.

    Raises:
        TrainerError: with the expected signature.
    """
    wanted = inspect.signature(original)
    where = f"{cls.__qualname__}.{name}"
    expected = f"def {name}{_shown(wanted)}"
    if isinstance(own, staticmethod | classmethod | property) or not callable(own):
        raise TrainerError(f"{where} must be a plain method", hint=expected, stage="class")
    if inspect.iscoroutinefunction(own) or inspect.isasyncgenfunction(own):
        raise TrainerError(f"{where} is async, and the loop calls it as it is", hint=expected, stage="class")
    parameters = inspect.signature(own).parameters
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in parameters.values())
    names = [each.name for each in parameters.values() if each.kind not in _VARIADIC]
    required = [each.name for each in wanted.parameters.values() if each.default is each.empty]
    if not takes_any and names[: len(required)] != required:
        raise TrainerError(
            f"{where} takes ({', '.join(names)}), and is called with ({', '.join(required)})",
            hint=f"write {expected}",
            stage="class",
        )
    for each in parameters.values():
        if each.name not in wanted.parameters and each.default is each.empty and each.kind not in _VARIADIC:
            if takes_any and each.name in ("self",):
                continue
            raise TrainerError(
                f"{where} requires {each.name!r}, which nobody gives it", hint=f"write {expected}", stage="class"
            )


def _shown(signature: inspect.Signature) -> str:
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
