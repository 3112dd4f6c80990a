"""Where rows come from: the settings of each kind of source. Nothing is read here.

A source may be written short: as a string (`name:split[:slice]`, a path, an https address), or as a list of rows. A
kind that is registered elsewhere brings a subclass of `SourceConfig` as its `config_class`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from farstep.trainers.config.aliases import SOURCE, SOURCE_TYPES
from farstep.trainers.config.model import Name
from farstep.trainers.config.normal import snake_case
from farstep.trainers.config.numbers import NonNegative, Number, Positive, Whole, real, whole
from farstep.trainers.config.section import Section

Suffix = Literal["jsonl", "json", "csv", "parquet"]
_SLICE = re.compile(r"\[\s*([^\[\]:]*?)\s*:\s*([^\[\]:]*?)\s*\]$")


class SourceConfig(Section):
    """What all sources share. Of `sample_ratio` and `sample_count` one at most; a ratio over 1 repeats rows."""

    type: str
    sample_ratio: Annotated[NonNegative, Field(gt=0)] | None = None
    sample_count: Positive | None = None
    sample_seed: Whole | None = Field(default=None, description="`data.seed` where absent")
    slice: tuple[Any, Any] | None = Field(
        default=None, description="[start, end], rows or percentages; before sampling"
    )
    format: Name | None = Field(default=None, description="the row adapter; chosen by the keys of a row where absent")
    role_mapping: Mapping[str, str] | None = Field(
        default=None, description="role → column or path to the text of its turns"
    )
    content_key: Name | None = Field(default=None, description="where a turn's text is, in nested arrays of turns")
    columns: Mapping[str, str] | None = Field(default=None, description="our column → theirs, or a path to it")
    version: str = Field(default="", description="part of the cache's key: change it when the content has changed")

    unhashed: ClassVar[frozenset[str]] = frozenset()  # settings that do not change which rows there are

    @field_validator("slice", mode="before")
    @classmethod
    def _bounds(cls, value: object) -> object:
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError("must be [start, end]")
        return tuple(_bound(part) for part in value)

    @model_validator(mode="after")
    def _one_way_of_sampling(self) -> SourceConfig:
        if self.sample_ratio is not None and self.sample_count is not None:
            raise ValueError("sample_ratio and sample_count exclude each other: give one")
        return self


class HuggingFaceConfig(SourceConfig):
    """A data set of the Hugging Face hub, or a folder that `datasets` reads."""

    type: Literal["huggingface"] = "huggingface"
    name: Name
    subset: Name | None = None
    split: Name = "train"
    revision: Name | None = None
    kwargs: Mapping[str, Any] = Field(default={}, description="further arguments of datasets.load_dataset")


class BlobConfig(SourceConfig):
    """A file at an https address. `token` is sent as Bearer, to that address's host alone; it is never shown."""

    type: Literal["blob"] = "blob"
    url: Name
    token: SecretStr | None = None
    token_env: Name | None = Field(default=None, description="the environment variable that has the token")
    suffix: Suffix | None = Field(default=None, description="what the file is, where its address does not tell")
    allow_http: bool = False
    allow_private: bool = Field(default=False, description="addresses of this machine and of private networks")
    max_bytes: Positive = 16 * 1024**3
    timeout_s: Annotated[Number, Field(gt=0)] = 60.0

    unhashed: ClassVar[frozenset[str]] = frozenset(
        {"token", "token_env", "allow_http", "allow_private", "max_bytes", "timeout_s"}
    )

    @model_validator(mode="after")
    def _checked(self) -> BlobConfig:
        scheme, found, rest = self.url.partition("://")
        if not found or scheme.lower() not in ("https", "http"):
            raise ValueError("url must begin with https://")
        if scheme.lower() == "http" and not self.allow_http:
            raise ValueError("url must begin with https:// (allow_http: true lets plain http through)")
        if "@" in rest.split("/")[0]:
            raise ValueError("url must not hold a user name or password: use token or token_env")
        if self.token is not None and self.token_env is not None:
            raise ValueError("token and token_env exclude each other: give one")
        if self.token is not None and not self.token.get_secret_value().strip("*"):
            raise ValueError("token is empty or hidden by a dump: give it anew, or use token_env")
        return self


class FileConfig(SourceConfig):
    """A file or several (`path` may have wildcards): JSONL, JSON, CSV or Parquet."""

    type: Literal["file"] = "file"
    path: Name
    suffix: Suffix | None = None


class RowsConfig(SourceConfig):
    """Rows written into the configuration itself."""

    type: Literal["rows"] = "rows"
    rows: list[dict[str, Any]] = Field(min_length=1, repr=False)


class CallableConfig(SourceConfig):
    """A function that gives rows: `module:function` or the function. It is called with `kwargs`."""

    type: Literal["callable"] = "callable"
    function: str | Callable[..., Any]
    kwargs: Mapping[str, Any] = {}

    @field_validator("function")
    @classmethod
    def _place(cls, value: str | Callable[..., Any]) -> str | Callable[..., Any]:
        if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", value):
            raise ValueError(f"must be module:function, not {value!r}")
        return value


BUILT_IN: Mapping[str, type[SourceConfig]] = {
    "huggingface": HuggingFaceConfig,
    "blob": BlobConfig,
    "file": FileConfig,
    "rows": RowsConfig,
    "callable": CallableConfig,
}


def spelled_out(value: object) -> object:
    """A source written short as the mapping that it means; what is no short form is left as it is."""
    if isinstance(value, str):
        return _from_string(value)
    if callable(value) and not isinstance(value, type | SourceConfig):
        return {"type": "callable", "function": value}
    if isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
        return {"type": "rows", "rows": list(value)}
    if isinstance(value, Mapping):
        value = _renamed(value)
    if isinstance(value, Mapping) and "type" not in value:
        for key, kind in (("url", "blob"), ("path", "file"), ("rows", "rows"), ("function", "callable")):
            if key in value:
                return {"type": kind, **value}
        if "name" in value:
            return {"type": "huggingface", **value}
    return value


def _renamed(source: Mapping[Any, Any]) -> dict[Any, Any]:
    """Under our names; the same setting under two names is left twice, for the model to refuse."""
    names = {key: snake_case(key) if isinstance(key, str) else key for key in source}
    ours = {key: SOURCE.get(name, name) for key, name in names.items()}
    renamed = {ours[key] if list(ours.values()).count(ours[key]) == 1 else key: value for key, value in source.items()}
    kind = renamed.get("type")
    return renamed | ({"type": SOURCE_TYPES.get(kind.lower(), kind.lower())} if isinstance(kind, str) else {})


def _from_string(text: str) -> dict[str, Any]:
    """`name`, `name:split`, `name:split[:100]`, a path, an address; a subset takes the long form."""
    text, bounds = text.strip(), None
    if found := _SLICE.search(text):
        text, bounds = text[: found.start()].strip(), [found[1] or None, found[2] or None]
    source: dict[str, Any]
    if re.match(r"https?://", text):
        source = {"type": "blob", "url": text}
    elif re.search(r"(?i)\.(jsonl|ndjson|json|csv|parquet|pq)(\.gz)?$", text) or text.startswith(
        (".", "/", "~", "file:")
    ):
        source = {"type": "file", "path": text.removeprefix("file://").removeprefix("file:")}
    else:
        name, _, split = text.partition(":")
        source = {"type": "huggingface", "name": name} | ({"split": split} if split else {})
    return source | ({"slice": bounds} if bounds else {})


def _bound(part: object) -> object:
    """A row number, negative from the end, or a percentage as text."""
    if part is None or part == "":
        return None
    if isinstance(part, str) and part.strip().endswith("%"):
        share = real(part)
        if not -1 <= float(share) <= 1:  # type: ignore[arg-type]
            raise ValueError(f"{part!r} is more than 100%")
        return part.strip()
    number = whole(part)
    if not isinstance(number, int):
        raise ValueError(f"{part!r} is neither a row number nor a percentage")
    return number


__all__ = [
    "BUILT_IN",
    "BlobConfig",
    "CallableConfig",
    "FileConfig",
    "HuggingFaceConfig",
    "RowsConfig",
    "SourceConfig",
    "spelled_out",
]
