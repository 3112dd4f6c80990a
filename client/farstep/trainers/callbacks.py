"""Callbacks: the user's methods that are called with events, one after the other, in their order.

    class Watch(Callbacks):
        def on_log(self, event): ...
        async def on_checkpoint(self, event, infer): print(infer("hello"))

They observe; what they return is dropped. Any object with such methods will do, and a mapping of names to functions.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Literal

from farstep.trainers.errors import TrainerError
from farstep.trainers.events import TYPES, Event

log = logging.getLogger("farstep")

OnError = Literal["raise", "log"]
_METHODS = tuple(f"on_{kind}" for kind in TYPES)


class Callbacks:
    """Every method with nothing in it. `infer` samples from the very weights of a checkpoint."""

    def on_started(self, event: Event) -> object: ...
    def on_log(self, event: Event) -> object: ...
    def on_checkpoint(self, event: Event, infer: Callable[..., Any]) -> object: ...
    def on_eval(self, event: Event) -> object: ...
    def on_rollout(self, event: Event) -> object: ...
    def on_completed(self, event: Event) -> object: ...
    def on_failed(self, event: Event) -> object: ...
    def on_cancelled(self, event: Event) -> object: ...


class CallbackList:
    """Calls them all. With `on_error="raise"` what one raises ends the run; with "log" it is a line in the log."""

    def __init__(self, callbacks: Iterable[object], *, on_error: OnError = "raise") -> None:
        self._on_error = on_error
        self._functions = [_functions_of(each) for each in callbacks]

    def wants(self, kind: str) -> bool:
        return any(f"on_{kind}" in functions for functions in self._functions)

    def call(self, event: Event, **more: Any) -> None:
        """`more` goes to those that have a parameter of that name."""
        for functions in self._functions:
            function = functions.get(f"on_{event['type']}")
            if function is None:
                continue
            try:
                result = function(event, **_taken(function, more))
                if inspect.iscoroutine(result):
                    _finish(result)
            except Exception as error:
                if self._on_error == "raise":
                    raise
                log.warning("on_%s fails, training goes on: %s: %s", event["type"], type(error).__name__, error)


def _functions_of(given: object) -> dict[str, Callable[..., Any]]:
    if isinstance(given, Mapping):
        named = dict(given)
    else:
        named = {name: getattr(given, name) for name in dir(given) if name.startswith("on_")}
    for name in named:
        if name not in _METHODS:
            near = difflib.get_close_matches(str(name), _METHODS, n=1)
            raise TrainerError(
                f"{name} would never be called",
                field="callbacks",
                hint=f"did you mean {near[0]}?" if near else f"one of {', '.join(_METHODS)}",
            )
        if not callable(named[name]):
            raise TrainerError(f"{name} is no function", field="callbacks")
    if not named:
        raise TrainerError(
            f"{type(given).__name__} has none of {', '.join(_METHODS)}", field="callbacks", hint="see Callbacks"
        )
    unused = {name for name in _METHODS if getattr(type(given), name, None) is getattr(Callbacks, name)}
    return {name: function for name, function in named.items() if name not in unused}


def _taken(function: Callable[..., Any], more: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return {name: value for name, value in more.items() if takes_any or name in parameters}


def _finish(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Runs it to its end, on a thread of its own where this one has an event loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
        return
    raised: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(coroutine)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="farstep-callback")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
