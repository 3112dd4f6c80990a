"""Hooks: functions before and after a trainer's methods, which may change what goes in and what comes out.

    class Mine(SFTTrainer):
        def pre_step(self, batch):          # takes any of step's arguments, returns them in its own order
            return batch[:4]

        def post_loss(self, loss):          # takes what loss returned, returns what counts
            return 0.5 * loss

        hooks = [("pre-epoch", announce)]   # functions; a parameter named trainer or self gets the trainer

Order: the parent class's, the class's own, the configuration's, the constructor's. A class does not replace its
parent's hooks, and overriding a method keeps them. A method that calls its `super()` runs them once.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from farstep.trainers.errors import TrainerError

When = Literal["pre", "post"]

HOOKED = (
    "init",
    "train",
    "epoch",
    "step",
    "loss",
    "forward",
    "backward",
    "evaluate",
    "checkpoint",
    "load_data",
    "create_client",
    "create_schedule",
)
_SELF = ("self", "trainer")
_WRAPPED = "__farstep_hooked__"


@dataclass(frozen=True, slots=True)
class Hook:
    """`arguments`: of the method, which a pre hook takes; `wants_trainer`, and at which place."""

    when: When
    method: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    wants_trainer: bool

    @property
    def label(self) -> str:
        return f"{self.when}-{self.method} hook {getattr(self.function, '__qualname__', repr(self.function))}"

    def call(self, trainer: Any, given: Sequence[Any]) -> Any:
        return self.function(*([trainer] if self.wants_trainer else []), *given)


def hooked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A trainer's method with its hooks around it."""
    if hasattr(function, _WRAPPED):
        return function
    name = function.__name__
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        before, after = self.hooks_of("pre", name), self.hooks_of("post", name)
        active: set[str] = self._active_hooks
        if name in active or not (before or after):
            return function(self, *args, **kwargs)
        active.add(name)
        try:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            for hook in before:
                _run_before(self, hook, bound.arguments)
            result = function(*bound.args, **bound.kwargs)
            for hook in after:
                result = _run_after(self, hook, result)
            return result
        finally:
            active.discard(name)

    setattr(call, _WRAPPED, True)
    return call


def find_hooks(cls: type) -> list[Hook]:
    """Those that a class and its parents declare, the farthest parent's first.

    Raises:
        TrainerError: a hook of something that has none, or with arguments that the method lacks.
    """
    return [hook for base in reversed(cls.__mro__) for hook in _own_hooks(cls, base)]


def given_hooks(cls: type, pairs: Iterable[tuple[str, Callable[..., Any]]]) -> list[Hook]:
    """Hooks from pairs such as ("pre-step", function)."""
    found = []
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str) and callable(pair[1])):
            raise TrainerError(f"{pair!r} is no pair of a place and a function, such as ('pre-step', f)", stage="hook")
        when, _, method = pair[0].replace("_", "-").partition("-")
        found.append(_hook(cls, when, method.replace("-", "_"), pair[1], is_method=False))
    return found


def _own_hooks(cls: type, base: type) -> list[Hook]:
    found = []
    for attribute, value in vars(base).items():
        when, _, rest = attribute.partition("_")
        if when in ("pre", "post") and inspect.isfunction(value):
            method = rest.removesuffix("_callback")
            if method in HOOKED:
                found.append(_hook(cls, when, method, value, is_method=True))
            elif near := difflib.get_close_matches(method, HOOKED, n=1, cutoff=0.8):
                raise TrainerError(f"{base.__qualname__}.{attribute} would never run: nothing is called {method!r}",
                                   hint=f"did you mean {when}_{near[0]}?", stage="hook")  # fmt: skip
    return found + given_hooks(cls, vars(base).get("hooks", ()))


def _hook(cls: type, when: str, method: str, function: Callable[..., Any], *, is_method: bool) -> Hook:
    if when not in ("pre", "post") or method not in HOOKED:
        raise TrainerError(
            f"there is no place {when}-{method} for a hook",
            hint=f"pre- or post-, and one of {', '.join(HOOKED)}",
            stage="hook",
        )
    names = [name for name, each in inspect.signature(function).parameters.items() if each.default is each.empty]
    wants_trainer = is_method or bool(names and names[0] in _SELF)
    arguments = tuple(names[1:] if wants_trainer else names)
    hook = Hook("pre" if when == "pre" else "post", method, function, arguments, wants_trainer)
    if when == "post":
        if len(arguments) > 1:
            raise TrainerError(f"the {hook.label} takes {len(arguments)} arguments: only what {method} returned is "
                               "there", stage="hook")  # fmt: skip
        return hook
    known = list(inspect.signature(getattr(cls, method)).parameters)[1:]
    for argument in arguments:
        if argument not in known:
            raise TrainerError(
                f"the {hook.label} asks for {argument!r}, and {method} has no such argument",
                hint=f"it has {', '.join(known) or 'none'}",
                stage="hook",
            )
    return hook


def _run_before(trainer: Any, hook: Hook, arguments: dict[str, Any]) -> None:
    given = [arguments[name] for name in hook.arguments]
    returned = hook.call(trainer, given)
    for name, value in zip(hook.arguments, _counted(hook, given, returned), strict=True):
        arguments[name] = value


def _run_after(trainer: Any, hook: Hook, result: Any) -> Any:
    if not hook.arguments:
        returned = hook.call(trainer, ())
        if returned is not None:
            raise TrainerError(f"the {hook.label} returns something and takes nothing: let it take the "
                               f"result of {hook.method}", stage="hook")  # fmt: skip
        return result
    return _counted(hook, [result], hook.call(trainer, (result,)))[0]


def _counted(hook: Hook, given: Sequence[Any], returned: Any) -> Sequence[Any]:
    """The values that a hook returned, as many as it took."""
    if not given:
        if returned is not None:
            raise TrainerError(f"the {hook.label} takes no argument and returns one", stage="hook")
        return ()
    names = ", ".join(hook.arguments)
    if len(given) > 1:
        if not isinstance(returned, tuple) or len(returned) != len(given):
            got = len(returned) if isinstance(returned, tuple) else "nothing" if returned is None else 1
            raise TrainerError(f"the {hook.label} takes {len(given)} values and returned {got}",
                               hint=f"return {names}", stage="hook")  # fmt: skip
        return returned
    if isinstance(returned, tuple) and not isinstance(given[0], tuple):
        raise TrainerError(f"the {hook.label} takes one value and returned {len(returned)}",
                           hint=f"return {names}", stage="hook")  # fmt: skip
    if returned is None and given[0] is not None:
        raise TrainerError(f"the {hook.label} returned nothing", hint=f"return {names}", stage="hook")
    return (returned,)
