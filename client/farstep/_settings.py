"""What the environment says, read once where a client is made: address, key, session to reuse.

Order: the argument, the environment variable, `local.json` as `farstep up` wrote it, the default. Nothing
else in the SDK looks at these. A key appears in no repr and in no message.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from farstep.errors import InvalidInputError

DEFAULT_BASE_URL = "http://127.0.0.1:8787"


@dataclass(frozen=True, slots=True, repr=False)
class ApiKey:
    """A key, and enough to find it again in another process.

    Pickled, a key that came by argument travels along, because nothing else could give it to the other
    process: treat such a pickle as a secret. One that came from the environment or from `local.json` is
    left out and read anew there.
    """

    secret: str | None
    argument: str | None
    base_url: str

    def __repr__(self) -> str:
        return f"ApiKey({'set' if self.secret else 'none'})"

    def __reduce__(self) -> tuple[Any, ...]:
        return find_key, (self.argument, self.base_url)


@dataclass(frozen=True, slots=True)
class Settings:
    base_url: str
    key: ApiKey
    reuse_from_session_id: str | None


def load_settings(*, api_key: str | None, base_url: str | None, reuse_from_session_id: str | None) -> Settings:
    """Raises InvalidInputError for an address or a key that cannot be one."""
    url = base_url or os.environ.get("FARSTEP_BASE_URL") or _local_json().get("base_url") or DEFAULT_BASE_URL
    url = check_url(url, field="base_url")
    return Settings(
        base_url=url,
        key=find_key(api_key, url),
        reuse_from_session_id=reuse_from_session_id or os.environ.get("FARSTEP_REUSE_FROM_SESSION_ID"),
    )


def find_key(argument: str | None, base_url: str) -> ApiKey:
    secret = argument or os.environ.get("FARSTEP_API_KEY")
    if not secret:
        local = _local_json()
        is_local = bool(local) and local.get("base_url", "").rstrip("/") == base_url
        secret = local.get("api_key") if is_local else None
    if secret and not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise InvalidInputError("holds characters that no key has; is there a line break in it?", field="api_key")
    return ApiKey(secret or None, argument, base_url)


def check_url(url: str, *, field: str) -> str:
    """Returns the address without a trailing slash; refuses one that is none, or that holds a password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInputError(f"{url!r} is not an http(s) address", field=field)
    if parts.username or parts.password:
        raise InvalidInputError("must not hold a user name or password", field=field, hint="use api_key")
    return url.rstrip("/")


def _local_json() -> dict[str, str]:
    home = os.environ.get("FARSTEP_HOME")
    path = (Path(home) if home else Path.home() / ".farstep") / "local.json"
    try:
        text = path.read_text()
    except OSError:
        return {}
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"{path} is not JSON", hint="start `farstep up` again, or remove it") from error
    return {key: content[key] for key in ("base_url", "api_key") if isinstance(content.get(key), str)}
