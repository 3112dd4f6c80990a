"""Under which names the models of this installation are asked for.

A name is resolved here and nowhere else: what stands in requests, lists and answers is the name that was asked for,
what trainers, samplers and checkpoints know is the model: a hub id, or a directory with one.

Invariant: a name means one model; a model's own name means itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from farstep_infra.control import requests
from farstep_proto.errors import InvalidInput

_MAX_NAME = 200
_OTHER_KINDS = "://"  # checkpoints are named so


@dataclass(frozen=True, slots=True)
class ServedModels:
    """Args:
    default: the model that is loaded from the start.
    by_name: what each further name means.
    """

    default: str
    by_name: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, default: str, names: Iterable[str]) -> ServedModels:
        """Args:
            names: each NAME, of `default`, or NAME=MODEL.

        Raises:
            InvalidInput: a name or a model that cannot be, or a name for two models.
        """
        requests.check_base_model(default)
        by_name: dict[str, str] = {}
        for text in names:
            name, has_model, model = text.partition("=")
            model = model if has_model else default
            _check_name(name)
            requests.check_base_model(model, field="served_name")
            if by_name.setdefault(name, model) != model or (name == default != model):
                raise InvalidInput(f"{name!r} is given to two models", field="served_name")
        for name, model in by_name.items():
            if by_name.get(model, model) != model:
                raise InvalidInput(f"{name!r} is given to {model!r}, which is a name itself", field="served_name")
        return cls(default, by_name)

    @property
    def names(self) -> Sequence[str]:
        """All of them; of a directory that has others not its own, which is nobody's business."""
        is_hidden = self.names_of(self.default) and requests.is_model_directory(self.default)
        return tuple(dict.fromkeys((*(() if is_hidden else (self.default,)), *self.by_name)))

    def resolve(self, name: str) -> str:
        """The model that a name means: itself, where it is none of ours."""
        return self.by_name.get(name, name)

    def names_of(self, model: str) -> Sequence[str]:
        """The further names of a model."""
        return [name for name, named in self.by_name.items() if named == model]

    def name_for(self, model: str, *, asked: str = "") -> str:
        """What programs are told a model is called: as it was `asked` for, or the first of its further names."""
        if asked in self.names and self.resolve(asked) == model:
            return asked
        return next(iter(self.names_of(model)), model)

    def knows(self, name: str) -> bool:
        return name in self.by_name or self.resolve(name) in {self.default, *self.by_name.values()}

    def check(self, name: str) -> None:
        """Raises InvalidInput for what can be no model here: neither a served name nor a hub id nor a directory."""
        if not self.knows(name):
            requests.check_base_model(name)

    def check_served(self, name: str) -> None:
        """As `check`, and a model on the hub that nobody has named here is refused as well.

        Raises:
            InvalidInput: listing what is served.
        """
        if not self.knows(name) and not requests.is_model_directory(name):
            raise InvalidInput(
                f"{name!r} is not served here; there is {', '.join(self.names)}",
                field="base_model",
                hint=f"farstep up --served-name {name or 'NAME'}=MODEL serves a model under that name",
            )


def _check_name(name: str) -> None:
    if not name or len(name) > _MAX_NAME or not name.isprintable() or _OTHER_KINDS in name:
        raise InvalidInput(f"{name!r} is no name of a model", field="served_name")
