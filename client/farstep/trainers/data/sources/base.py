"""`Source`: a place that rows are read from. It does not judge rows: that is the row adapters' matter.

    class Wiki(Source):
        name = "wiki"
        config_class = WikiConfig

        def rows(self): return [{"text": …}, …]
        def fingerprint(self): return self.config.revision

Invariant: equal configurations and fingerprints mean equal rows in equal order; the cache builds on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from farstep.trainers.config.sources import SourceConfig
from farstep.trainers.registry import Registered

Row = Mapping[str, Any]
_HERE = "farstep.trainers.data.sources"


class Source(Registered):
    """One source, with its settings. Constructing it reads nothing."""

    homes: ClassVar[Mapping[str, str]] = {
        "huggingface": f"{_HERE}.huggingface:HuggingFace",
        "blob": f"{_HERE}.blob:Blob",
        "file": f"{_HERE}.file:File",
        "rows": f"{_HERE}.rows:Rows",
        "callable": f"{_HERE}.function:Function",
    }
    entry_point_group = "farstep.sources"
    config_class: ClassVar[type[SourceConfig]] = SourceConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    def rows(self) -> Sequence[Row]:
        """All rows, in the source's order: sized and indexable.

        Raises:
            DataError: they cannot be had; the message says what there is instead.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """What rows there are, as far as the configuration does not tell: the content's hash, a revision."""
        raise NotImplementedError
