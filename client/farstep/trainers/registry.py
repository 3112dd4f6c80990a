"""`Registered`: a class that has a name can be asked for by it, without another call.

    class Shout(Trainer):
        name = "shout"

    Trainer.get("shout")

One registry for each *family*, the direct subclass of `Registered` (Trainer, Tracker, …). A name comes from a class in
this process, from our own modules (`homes`, loaded when asked for) or from an installed package's entry points. A
class without a name of its own is abstract or private: usable, not listed.

Invariant: asking which names there are imports nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Self

from farstep.trainers.errors import RegistryError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Registered:
    """The root of families.

    A family may say `homes`, its names that lie in modules not yet loaded, as "module:Class", and `entry_point_group`,
    where other packages may put more.
    """

    name: ClassVar[str] = ""
    homes: ClassVar[Mapping[str, str]] = {}
    entry_point_group: ClassVar[str] = ""
    _family: ClassVar[type[Registered]]
    _classes: ClassVar[dict[str, type[Registered]]]

    def __init_subclass__(cls, *, replace: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Registered in cls.__bases__:
            cls._family, cls._classes = cls, {}
            return
        if name := cls.__dict__.get("name", ""):
            cls._register(name, replace=replace)

    @classmethod
    def _register(cls, name: str, *, replace: bool) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RegistryError(
                f"{name!r} of {cls.__qualname__} is no name", hint="letters, digits, '.', '_' and '-', at most 64"
            )
        taken = cls._classes.get(name)
        if taken is not None and not replace and not _same_definition(taken, cls):
            raise RegistryError(
                f"the {_noun(cls._family)} name {name!r} is taken by {taken.__module__}.{taken.__qualname__}",
                hint="choose another name, or say replace=True in the class statement",
                known=cls.names(),
            )
        home = cls._family.homes.get(name, "")
        if taken is None and home and home != f"{cls.__module__}:{cls.__qualname__}" and not replace:
            raise RegistryError(
                f"the {_noun(cls._family)} name {name!r} is taken by {home.replace(':', '.')}",
                hint="choose another name, or say replace=True in the class statement",
                known=cls.names(),
            )
        cls._classes[name] = cls

    @classmethod
    def get(cls, name: str) -> type[Self]:
        """The class of that name.

        Raises:
            RegistryError: there is none, or the package that has it cannot be loaded.
        """
        family = cls._family
        if name not in family._classes:
            family._load(name)
        found = family._classes[name]
        if not issubclass(found, cls):
            raise RegistryError(f"{name!r} is a {_noun(family)}, but no {cls.__qualname__}", known=cls.names())
        return found

    @classmethod
    def names(cls) -> list[str]:
        """Every name there is, loaded or not, in order."""
        family = cls._family
        outside = [point.name for point in entry_points(group=family.entry_point_group)] if family._has_group() else []
        return sorted({*family._classes, *family.homes, *outside})

    @classmethod
    def _has_group(cls) -> bool:
        return bool(cls.entry_point_group)

    @classmethod
    def _load(cls, name: str) -> None:
        """Loads the module that has the name; what it defines is registered by that."""
        if home := cls.homes.get(name):
            cls._classes[name] = getattr(import_module(home.partition(":")[0]), home.partition(":")[2])
            return
        points = entry_points(group=cls.entry_point_group, name=name) if cls._has_group() else ()
        for point in points:
            try:
                found = point.load()
            except Exception as error:
                raise RegistryError(
                    f"the {_noun(cls)} {name!r} of {point.value} cannot be loaded: {type(error).__name__}: {error}",
                    known=cls.names(),
                ) from error
            if not (isinstance(found, type) and issubclass(found, cls)):
                raise RegistryError(f"{point.value}, which is to be the {_noun(cls)} {name!r}, is none")
            cls._classes[name] = found
            return
        known = cls.names()
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        raise RegistryError(
            f"there is no {_noun(cls)} {name!r}",
            hint=(f"did you mean {near[0]!r}? " if near else "") + f"there are: {', '.join(known) or 'none'}",
            known=known,
        )


def _same_definition(old: type, new: type) -> bool:
    """A notebook cell that is run again, or a module that is loaded again, defines no second class."""
    return (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def _noun(family: type) -> str:
    """RowAdapter → row adapter."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", family.__name__).lower()
