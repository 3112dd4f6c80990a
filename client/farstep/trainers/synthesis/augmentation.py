"""Augmentations: an item from an item. Pure; the same seed changes the same letters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from farstep.trainers.data.order import permutation
from farstep.trainers.errors import DataError
from farstep.trainers.synthesis.result import Item

_IN_OUT = (("input", "output"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"))


def swap_in_out(item: Item, *, input_key: str | None = None, output_key: str | None = None) -> dict[str, Any]:
    """Asks for the input by the output: of a translation, the translation back.

    Raises:
        DataError: the item has no such keys.
    """
    if input_key is None or output_key is None:
        pair = next((pair for pair in _IN_OUT if pair[0] in item and pair[1] in item), None)
        input_key, output_key = (input_key or (pair or ("input", ""))[0], output_key or (pair or ("", "output"))[1])
    for name in (input_key, output_key):
        if name not in item:
            raise DataError("missing", field=name, hint=f"the item has {', '.join(map(str, item))}")
    return {**item, input_key: item[output_key], output_key: item[input_key]}


def add_noise(item: Item, *, seed: int, rate: float = 0.05, key: str | None = None) -> dict[str, Any]:
    """Typing mistakes in the input: of its letters, so many (at least one) are left out, doubled or swapped.

    Args:
        rate: in [0, 1], of the letters and digits; 0 changes nothing.
        key: of the text; None: the first of input, prompt, question and text that is there.

    Raises:
        DataError: there is no such text, or `rate` cannot be.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise DataError(f"{rate!r} is not from 0 to 1", field="rate")
    name = key or next((name for name in ("input", "prompt", "question", "text") if name in item), "input")
    text = item.get(name)
    if not isinstance(text, str):
        raise DataError(f"a {type(text).__name__}, not a text", field=name, hint=f"the item has {', '.join(item)}")
    return {**item, name: _noisy(text, seed, rate)}


def _noisy(text: str, seed: int, rate: float) -> str:
    places = [index for index, letter in enumerate(text) if letter.isalnum()]
    if not places or not rate:
        return text
    chosen = permutation(len(places), seed, "noise")[: max(1, round(rate * len(places)))]
    kinds = np.random.Philox(key=seed).random_raw(len(chosen))
    letters = list(text)
    for place, kind in zip(chosen.tolist(), np.atleast_1d(kinds).tolist(), strict=True):
        _spoil(letters, places[place], kind % 3)
    return "".join(letters)


def _spoil(letters: list[str], index: int, kind: int) -> None:
    """Keeps the number of entries, so that indices stay what they were."""
    following = letters[index + 1] if index + 1 < len(letters) else ""
    if kind == 0 and following and following != letters[index]:
        letters[index], letters[index + 1] = following, letters[index]
    elif kind == 1 and len(letters) > 1:
        letters[index] = ""
    else:
        letters[index] *= 2


def augmentation(name: str) -> Any:
    """`swap_in_out` or `add_noise`, as a function of an item and a seed.

    Raises:
        DataError: there is none of that name.
    """
    found = _BY_NAME.get(name)
    if found is None:
        raise DataError(f"there is no augmentation {name!r}", field="augmentations",
                        hint=f"there are {', '.join(_BY_NAME)}; or a function of an item and a seed")  # fmt: skip
    return found


_BY_NAME: Mapping[str, Any] = {
    "swap_in_out": lambda item, seed: swap_in_out(item),
    "add_noise": lambda item, seed: add_noise(item, seed=seed),
}
