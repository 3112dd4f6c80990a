"""`Synthesizer`: makes new items. One of your own has a name and says `make`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from farstep.trainers.registry import Registered
from farstep.trainers.synthesis.result import Failure, Item

_HERE = "farstep.trainers.synthesis"


@dataclass(frozen=True, slots=True)
class Made:
    """`items` in the order of their numbers; what could not be made is in `failures`."""

    items: list[Item]
    failures: list[Failure] = field(default_factory=list)


class Synthesizer(Registered):
    homes: ClassVar[dict[str, str]] = {
        "llm": f"{_HERE}.llm:LLMSynthesizer",
        "template": f"{_HERE}.template:TemplateSynthesizer",
        "augment": f"{_HERE}.augment:AugmentSynthesizer",
    }
    entry_point_group = "farstep.synthesizers"

    async def make(self, given: Sequence[Item], num_samples: int, *, seed: int) -> Made:
        """
        Args:
            given: items that are there already.

        Raises:
            DataError: it cannot make anything of these.
        """
        raise NotImplementedError
