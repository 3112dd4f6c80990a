"""`Operator`: a step of an agent that can be executed, and that has something in it to tune.

    class Greet(Operator):
        def __init__(self):
            super().__init__("greet", [TunableSpec("greeting", "text", "Hello")])

        async def _execute(self, *, whom):
            return f"{self['greeting']}, {whom}"

Its state is the values of its tunables, as JSON can hold them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from farstep.trainers.errors import TrainerError
from farstep.trainers.operators.traces import Trace, Traces
from farstep.trainers.operators.tunable import TunableSpec


class Operator(ABC):
    def __init__(self, name: str, tunables: Iterable[TunableSpec]) -> None:
        if not isinstance(name, str) or not name.strip():
            raise TrainerError(f"{name!r} is no name", field="name", stage="operator")
        self.name = name
        self.traces = Traces()
        self._tunables: dict[str, TunableSpec] = {}
        for spec in tunables:
            if spec.name in self._tunables:
                raise TrainerError(f"{name} has two tunables {spec.name!r}", field="tunables", stage="operator")
            self._tunables[spec.name] = spec

    async def execute(self, **inputs: Any) -> Any:
        """What it does; the call is noted in `traces`, also where it fails."""
        began_at = time.monotonic()
        try:
            output = await self._execute(**inputs)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            self.traces.add(Trace(self.name, inputs, None, said, time.monotonic() - began_at))
            raise
        self.traces.add(Trace(self.name, inputs, output, "", time.monotonic() - began_at))
        return output

    @abstractmethod
    async def _execute(self, **inputs: Any) -> Any: ...

    def get_tunables(self) -> list[TunableSpec]:
        return list(self._tunables.values())

    def __getitem__(self, tunable: str) -> Any:
        """Its present value."""
        return self._spec(tunable).value

    def set(self, tunable: str, value: Any) -> None:
        """Raises TrainerError where there is no such tunable, or it cannot have that value; nothing is changed then."""
        self._tunables[tunable] = self._changed(tunable, value)

    def get_state(self) -> dict[str, Any]:
        return {name: spec.value for name, spec in self._tunables.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """All values at once, or none.

        Raises:
            TrainerError: the state is of another operator, or has a value that cannot be.
        """
        if not isinstance(state, Mapping) or state.keys() != self._tunables.keys():
            found = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise TrainerError(f"the state has {found or 'nothing'}, and the operator {', '.join(self._tunables)}",
                               field=self.name, stage="operator")  # fmt: skip
        self._tunables = {name: self._changed(name, state[name]) for name in self._tunables}

    def _changed(self, tunable: str, value: Any) -> TunableSpec:
        try:
            return self._spec(tunable).changed(value)
        except TrainerError as error:
            raise TrainerError(error.message, field=f"{self.name}.{tunable}", hint=error.hint,
                               stage="operator") from error  # fmt: skip

    def _spec(self, tunable: str) -> TunableSpec:
        if tunable not in self._tunables:
            raise TrainerError(f"{self.name} has no tunable {tunable!r}", field="tunable", stage="operator",
                               hint=f"it has {', '.join(self._tunables) or 'none'}")  # fmt: skip
        return self._tunables[tunable]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def states_of(operators: Sequence[Operator]) -> dict[str, dict[str, Any]]:
    return {operator.name: operator.get_state() for operator in operators}


def load_states(operators: Sequence[Operator], states: Mapping[str, Mapping[str, Any]]) -> None:
    """Every operator's state, or, where one cannot be, none.

    Raises:
        TrainerError: these are not the operators that the states are of.
    """
    names = {operator.name for operator in operators}
    if states.keys() != names:
        raise TrainerError(f"the states are of {', '.join(sorted(states)) or 'nobody'}, and the operators are "
                           f"{', '.join(sorted(names))}", field="operators", stage="operator")  # fmt: skip
    before = states_of(operators)
    try:
        for operator in operators:
            operator.load_state(states[operator.name])
    except BaseException:
        for operator in operators:
            operator.load_state(before[operator.name])
        raise
