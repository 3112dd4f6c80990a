"""`TemplateSynthesizer`: templates with placeholders, filled with every combination of values, in a random order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from farstep.trainers.data.order import permutation
from farstep.trainers.errors import DataError
from farstep.trainers.operators.template import filled, placeholders
from farstep.trainers.synthesis.result import Failure, Item
from farstep.trainers.synthesis.synthesizer import Made, Synthesizer

_LISTED_AT_MOST = 1_000_000


class TemplateSynthesizer(Synthesizer):
    """
        TemplateSynthesizer({"prompt": "{a} and {b}", "answer": "{a}{b}"}, {"a": ["x", "y"], "b": ["u", "v"]})

    Args:
        template: texts by key; anything but a text is taken as it is.
        values: what each placeholder may be.

    Raises:
        DataError: a placeholder has no values.
    """

    name = "template"

    def __init__(self, template: Mapping[str, Any], values: Mapping[str, Sequence[Any]]) -> None:
        wanted = {name for text in template.values() if isinstance(text, str) for name in placeholders(text)}
        for name in sorted(wanted):
            if isinstance(values.get(name, ()), str) or not values.get(name, ()):
                raise DataError("there are no values for this placeholder", field=name, hint="a list of them")
        self._template = dict(template)
        self._values = {name: list(values[name]) for name in sorted(wanted)}

    @property
    def num_combinations(self) -> int:
        number = 1
        for values in self._values.values():
            number *= len(values)
        return number

    async def make(self, given: Sequence[Item], num_samples: int, *, seed: int) -> Made:
        """No combination twice; where there are not enough of them the rest are failures."""
        chosen = self._chosen(min(num_samples, self.num_combinations), seed)
        reason = f"there are no more than {self.num_combinations} combinations"
        missing = range(len(chosen), num_samples)
        return Made([self._item(number) for number in chosen], [Failure(index, reason) for index in missing])

    def _chosen(self, count: int, seed: int) -> list[int]:
        """Different numbers of combinations."""
        total = self.num_combinations
        if total <= _LISTED_AT_MOST:
            return [int(number) for number in permutation(total, seed, "template")[:count]]
        bits = np.random.Philox(key=seed)
        found: dict[int, None] = {}
        while len(found) < count:
            high, low = bits.random_raw(2).tolist()
            found[((high << 64) | low) % total] = None
        return list(found)

    def _item(self, number: int) -> Item:
        chosen = {}
        for name, values in self._values.items():
            number, index = divmod(number, len(values))
            chosen[name] = values[index]
        return {key: filled(text, chosen) if isinstance(text, str) else text for key, text in self._template.items()}
