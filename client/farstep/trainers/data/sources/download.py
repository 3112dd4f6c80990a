"""Fetches a file from an address that somebody wrote into a configuration, and no other.

The address may be anybody's, and the machine may be a server: only https, only public addresses, and redirects are held
to the same rules. A host's name is resolved once, every address of it is judged, and the connection goes to the one
that was judged, so that no second answer of the name's owner matters. The token goes to the host it was given for.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit

import httpx

from farstep.trainers.errors import DataError

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

Resolve = Callable[[str, int], list[str]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What is allowed beyond https to public addresses, and how much."""

    allow_http: bool = False
    allow_private: bool = False
    max_bytes: int = 16 * 1024**3
    timeout_s: float = 60.0


def addresses_of(host: str, port: int) -> list[str]:
    """
    Raises:
        DataError: the name is unknown.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DataError(f"no address: {error}", field=host) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def judged_addresses(url: str, rules: Rules, resolve: Resolve) -> list[str]:
    """The addresses that may be connected to: all that the host has.

    Raises:
        DataError: the scheme is not allowed, or one of the host's addresses is not public.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or (parts.scheme == "http" and not rules.allow_http):
        raise DataError(f"{parts.scheme or 'no scheme'}, and only https is allowed", field=shown(url))
    if not parts.hostname:
        raise DataError("names no host", field=shown(url))
    addresses = resolve(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    for address in addresses:
        if not rules.allow_private and not _is_public(address):
            raise DataError(
                f"{parts.hostname} is {address}, which is not public",
                field=shown(url),
                hint="allow_private: true lets it through",
            )
    return addresses


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def download(
    url: str,
    to: Path,
    *,
    token: str | None,
    rules: Rules,
    known: Validator | None = None,
    resolve: Resolve = addresses_of,
    verify: ssl.SSLContext | bool = True,
) -> Downloaded:
    """Writes what is at `url` to `to`, and says what the server calls it.

    Args:
        known: of content that is here already: where it is still that, nothing is written.

    Raises:
        DataError: refused by the rules, not found, too large, or broken off. Never holds the token.
    """
    origin = _origin(url)
    for _ in range(MAX_REDIRECTS + 1):
        headers = {"Authorization": f"Bearer {token}"} if token and _origin(url) == origin else {}
        headers |= known.asked_for() if known is not None else {}
        found = _fetch_from_any(url, to, headers, rules, judged_addresses(url, rules, resolve), verify)
        if isinstance(found, Downloaded):
            return found
        url = urljoin(url, found)
    raise DataError(f"more than {MAX_REDIRECTS} redirects", field=shown(url))


@dataclass(frozen=True, slots=True)
class Validator:
    """What a server gives to tell contents apart by; empty where it gives nothing."""

    etag: str = ""
    last_modified: str = ""

    def __bool__(self) -> bool:
        return bool(self.etag or self.last_modified)

    def asked_for(self) -> dict[str, str]:
        """The headers that ask whether the content is another by now."""
        headers = {"If-None-Match": self.etag, "If-Modified-Since": "" if self.etag else self.last_modified}
        return {name: value for name, value in headers.items() if value}


@dataclass(frozen=True, slots=True)
class Downloaded:
    """`is_unchanged`: it is what was known, and nothing was written."""

    content_type: str = ""
    validator: Validator = Validator()
    is_unchanged: bool = False


def _fetch_from_any(
    url: str, to: Path, headers: dict[str, str], rules: Rules, addresses: list[str], verify: ssl.SSLContext | bool
) -> Downloaded | str:
    """From the first address that takes the connection: some of a host's may be out of reach from here."""
    failure: httpx.HTTPError | httpx.InvalidURL | None = None
    for address in addresses:
        try:
            return _fetch(url, to, headers, rules, address, verify)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failure = error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failure = error
            break
    raise DataError(f"cannot be fetched: {type(failure).__name__}: {failure}", field=shown(url)) from failure


def _fetch(
    url: str, to: Path, headers: dict[str, str], rules: Rules, address: str, verify: ssl.SSLContext | bool
) -> Downloaded | str:
    """What was written; or where to go instead."""
    parts = urlsplit(url)
    literal = f"[{address}]" if ":" in address else address
    port = f":{parts.port}" if parts.port else ""
    pinned = urlunsplit((parts.scheme, literal + port, parts.path or "/", parts.query, ""))
    extensions = {"sni_hostname": parts.hostname}
    # Proxies of the environment would look the host up again; redirects are judged by `download`.
    with (
        httpx.Client(timeout=rules.timeout_s, trust_env=False, follow_redirects=False, verify=verify) as client,
        client.stream(
            "GET", pinned, headers={"Host": parts.netloc.rpartition("@")[2], **headers}, extensions=extensions
        ) as response,
    ):
        if response.status_code in _REDIRECTS and "location" in response.headers:
            return response.headers["location"]
        validator = Validator(response.headers.get("etag", ""), response.headers.get("last-modified", ""))
        if _is_unchanged(response.status_code, validator, headers):
            return Downloaded(validator=validator, is_unchanged=True)
        if response.status_code != 200:
            hint = "is the token right?" if response.status_code in (401, 403) else ""
            raise DataError(f"HTTP {response.status_code} {response.reason_phrase}", field=shown(url), hint=hint)
        _write(response, to, rules, url)
        return Downloaded(response.headers.get("content-type", ""), validator)


def _is_unchanged(status: int, validator: Validator, asked: dict[str, str]) -> bool:
    """Whether it is what was asked about; of a server that does not look at headers, too."""
    if status == 304:
        return bool(asked.keys() & {"If-None-Match", "If-Modified-Since"})
    return status == 200 and bool(validator.etag) and validator.etag == asked.get("If-None-Match")


def _write(response: httpx.Response, to: Path, rules: Rules, url: str) -> None:
    written = 0
    with to.open("wb") as file:
        for part in response.iter_bytes():
            written += len(part)
            if written > rules.max_bytes:
                raise DataError(f"more than max_bytes ({rules.max_bytes})", field=shown(url))
            file.write(part)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def shown(url: str) -> str:
    """Without its query, which may be a signature, and without a user's name."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
