"""What pydantic says of a configuration in our words: where, what, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from farstep.trainers.config.aliases import TOP
from farstep.trainers.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_Place = tuple[str | int, ...]


def nearest(name: str, known: Iterable[str], *, aliases: Iterable[str] = ()) -> str:
    """A hint that names the known name (or alias) that looks most like this one, or else all known ones."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, [*names, *aliases], n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}" if names else ""


def written_as(place: _Place) -> str:
    """`("data", "sources", 0, "split")` as `data.sources[0].split`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def from_validation(error: ValidationError, model: type[BaseModel], written: Mapping[str, str]) -> ConfigError:
    """Every mistake, the first with a hint, at the place that the user wrote (`written`: our place → theirs)."""
    mistakes = [_mistake(detail, model, written) for detail in error.errors(include_url=False)]
    mistakes.sort(key=lambda mistake: not mistake[2])  # one that can be helped first
    path, message, hint = mistakes[0]
    others = [f"{place}: {text}" for place, text, _ in mistakes[1:]]
    if others:
        message += "; and " + "; ".join(others[:5]) + (f"; and {len(others) - 5} more" if len(others) > 5 else "")
    return ConfigError(message, field=path, hint=hint)


def _mistake(detail: Any, model: type[BaseModel], written: Mapping[str, str]) -> tuple[str, str, str]:
    place, section = _followed(tuple(detail["loc"]), model)
    path = written_as(place)
    if path in written and written[path] != path:
        path = f"{written[path]} (= {path})"
    match detail["type"]:
        case "extra_forbidden":
            aliases = TOP if len(place) == 1 else ()
            return path, "unknown setting", nearest(str(place[-1]), section.model_fields, aliases=aliases)
        case "missing":
            return path, "missing", ""
        case "value_error":
            cause = detail["ctx"]["error"]
            if isinstance(cause, ConfigError):
                joined = path + (cause.field if cause.field.startswith("[") or not path else f".{cause.field}")
                return joined.rstrip("."), cause.message, cause.hint
            return path, str(cause), ""
        case _:
            shown = "" if "token" in path else f", not {_short(detail['input'])}"
            return path, detail["msg"][:1].lower() + detail["msg"][1:] + shown, ""


def _followed(place: _Place, model: type[BaseModel]) -> tuple[_Place, type[BaseModel]]:
    """The place without what pydantic adds to it (names of union members), and the section that it is in."""
    from pydantic import BaseModel

    kept: list[str | int] = []
    section = model
    for part in place:
        if isinstance(part, str) and kept and part not in section.model_fields and part != place[-1]:
            continue
        kept.append(part)
        field = section.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            section = next(
                (kind for kind in _kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)),
                section,
            )
    return tuple(kept), section


def _kinds(annotation: Any) -> Iterable[Any]:
    yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _kinds(inner)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
