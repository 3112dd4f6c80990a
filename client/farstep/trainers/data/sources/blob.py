"""Rows of a file at an https address."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from farstep.trainers.data.sources.base import Row, Source
from farstep.trainers.data.sources.download import Rules, download, shown
from farstep.trainers.data.sources.files import SUFFIXES, read_rows, suffix_of
from farstep.trainers.errors import DataError

_BY_TYPE = {
    "application/x-ndjson": "jsonl",
    "application/jsonl": "jsonl",
    "application/json": "json",
    "text/csv": "csv",
    "application/vnd.apache.parquet": "parquet",
}


class Blob(Source):
    """Downloaded when asked for, into a temporary file that is gone afterwards."""

    name = "blob"

    def rows(self) -> Sequence[Row]:
        config = self.config
        rules = Rules(config.allow_http, config.allow_private, config.max_bytes, config.timeout_s)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "blob"
            content_type = download(config.url, path, token=self._token(), rules=rules)
            return read_rows(path, self._suffix(content_type), shown=shown(config.url))

    def fingerprint(self) -> str:
        """The address stands for its content: asking for it at every start would need the network for a cached run."""
        return ""

    def _token(self) -> str | None:
        config = self.config
        if config.token is not None:
            token: str = config.token.get_secret_value()
            return token
        if config.token_env is None:
            return None
        found = os.environ.get(config.token_env)
        if not found:
            raise DataError("this environment variable is not set", field=config.token_env)
        return found

    def _suffix(self, content_type: str) -> str:
        by_type = _BY_TYPE.get(content_type.partition(";")[0].strip().lower())
        suffix: str | None = self.config.suffix or suffix_of(urlsplit(self.config.url).path) or by_type
        if suffix is None:
            hint = f"give suffix: {' | '.join(SUFFIXES)}"
            raise DataError("what kind of file is it?", field=shown(self.config.url), hint=hint)
        return suffix
