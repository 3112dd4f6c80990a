"""Rows of a file at an https address."""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import urlsplit

from farstep.trainers.data.sources.base import Row, Source
from farstep.trainers.data.sources.download import Rules, shown
from farstep.trainers.data.sources.files import SUFFIXES, read_rows, suffix_of
from farstep.trainers.data.sources.kept import fetched
from farstep.trainers.errors import DataError

_BY_TYPE = {
    "application/x-ndjson": "jsonl",
    "application/jsonl": "jsonl",
    "application/json": "json",
    "text/csv": "csv",
    "application/vnd.apache.parquet": "parquet",
}


class Blob(Source):
    """Asked for whenever its rows are; sent only where it is not what was kept (`kept`)."""

    name = "blob"

    def rows(self) -> Sequence[Row]:
        config = self.config
        rules = Rules(config.allow_http, config.allow_private, config.max_bytes, config.timeout_s)
        with fetched(config.url, token=self._token(), rules=rules) as found:
            return read_rows(found.path, self._suffix(found.content_type), shown=shown(config.url))

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
