"""`AugmentSynthesizer`: new items from those that are given, each changed in one of several ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from farstep.trainers.data.order import permutation
from farstep.trainers.errors import DataError
from farstep.trainers.synthesis.augmentation import augmentation
from farstep.trainers.synthesis.result import Failure, Item
from farstep.trainers.synthesis.selection import contents_of
from farstep.trainers.synthesis.synthesizer import Made, Synthesizer

Augmentation = Callable[[Item, int], Item]


class AugmentSynthesizer(Synthesizer):
    """
    Args:
        augmentations: "add_noise", "swap_in_out", or functions of an item and a seed.
    """

    name = "augment"

    def __init__(self, augmentations: Sequence[str | Augmentation] = ("add_noise",)) -> None:
        if isinstance(augmentations, str) or not augmentations:
            raise DataError("must be a list, and not empty", field="augmentations")
        self._augmentations: list[Augmentation] = [
            augmentation(each) if isinstance(each, str) else each for each in augmentations
        ]

    async def make(self, given: Sequence[Item], num_samples: int, *, seed: int) -> Made:
        """Every item with every augmentation before the first comes again with another seed.

        What equals an item that is there already is made no second time; an item that cannot be changed so is a
        failure.
        """
        if not given:
            raise DataError("there is nothing to augment", field="items")
        pairs = [(item, change) for change in self._augmentations for item in given]
        seen = set(contents_of(given))
        items: list[Item] = []
        failures: list[Failure] = []
        for round_number in range(1 + -(-num_samples // len(pairs)) * 2):
            for place in permutation(len(pairs), seed, "augment", round_number).tolist():
                if len(items) + len(failures) >= num_samples:
                    return Made(items, failures)
                item, change = pairs[place]
                try:
                    new = change(item, _seed_of(seed, round_number, place))
                except DataError as error:
                    if round_number == 0:
                        failures.append(Failure(len(items) + len(failures), str(error)))
                    continue
                content = contents_of([new])[0]
                if content not in seen:
                    seen.add(content)
                    items.append(new)
        missing = range(len(items) + len(failures), num_samples)
        failures += [Failure(index, "no augmentation gives anything new") for index in missing]
        return Made(items, failures)


def _seed_of(seed: int, round_number: int, place: int) -> int:
    return int(permutation(2**16, seed, round_number, place)[0]) + (round_number << 32) + (place << 16)
