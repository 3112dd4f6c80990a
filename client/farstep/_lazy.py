"""Packages whose public names are loaded when they are first used: for which an import of theirs is too dear.

    __getattr__, __dir__ = lazy(__name__, {"farstep.trainers.dpo": "DPOTrainer IPOTrainer", …})

Loads nothing by itself. A name that was used once is the package's own from then on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy(package: str, names_of: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`.

    Args:
        package: its name.
        names_of: module → the public names that it has, parted by spaces.
    """
    home_of = {name: home for home, names in names_of.items() for name in names.split()}

    def find(name: str) -> object:
        if home := home_of.get(name):
            found = getattr(import_module(home), name)
            setattr(sys.modules[package], name, found)
            return found
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of})

    return find, names
