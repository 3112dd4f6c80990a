"""What was fetched from addresses, kept on this machine, so that a file is sent once and not at every check and run.

    <cache>/farstep/blobs/<hash of the address>/   content   about.json   lock

It is never used unasked: the server is shown the validator that it gave (ETag, Last-Modified), with the token, and says
whether the content is still that one. Where it gives none, nothing is kept. The folder is the user's alone, may be
removed at any time, and forgets what nobody has asked for in thirty days.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from farstep.trainers.data.sources.download import Downloaded, Rules, Validator, download, shown
from farstep.trainers.errors import DataError

FORGOTTEN_AFTER_S = 30 * 24 * 3600
_CONTENT, _ABOUT, _LOCK = "content", "about.json", "lock"


@dataclass(frozen=True, slots=True)
class Fetched:
    """`path` is there as long as the block lasts. `was_kept`: nothing was sent for it."""

    path: Path
    content_type: str
    was_kept: bool


def default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "farstep" / "blobs"


@contextmanager
def fetched(url: str, *, token: str | None, rules: Rules, folder: Path | None = None) -> Iterator[Fetched]:
    """What is at an address, as it is now. One process at a time; others wait.

    Args:
        folder: of what is kept; the user's cache where absent. One that cannot be written is done without.

    Raises:
        DataError: as `download`, or there is no room for it.
    """
    place = _taken(folder or default_folder(), url)
    if place is None:
        with tempfile.TemporaryDirectory() as temporary:
            found = _download(url, Path(temporary) / _CONTENT, token, rules, None)
            yield Fetched(Path(temporary) / _CONTENT, found.content_type, was_kept=False)
        return
    with (place / _LOCK).open("w") as lock:
        _wait_for(lock.fileno())
        path, known, beside = place / _CONTENT, _known(place, rules), place / f"{_CONTENT}~"
        try:
            found = _download(url, beside, token, rules, known)
            if found.is_unchanged and known is not None:
                os.utime(place / _ABOUT)
                yield Fetched(path, known.content_type, was_kept=True)
                return
            _keep(place, beside, found)
            yield Fetched(path, found.content_type, was_kept=False)
        finally:
            beside.unlink(missing_ok=True)
            if not (place / _ABOUT).exists():
                path.unlink(missing_ok=True)


def _download(url: str, to: Path, token: str | None, rules: Rules, known: Downloaded | None) -> Downloaded:
    try:
        return download(url, to, token=token, rules=rules, known=known.validator if known is not None else None)
    except OSError as error:
        raise DataError(f"cannot be written to {to.parent}: {error.strerror or error}", field=shown(url)) from error


def _taken(folder: Path, url: str) -> Path | None:
    """The address's own place; None where nothing can be written."""
    place = folder / hashlib.sha256(url.encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _forget(folder, keep=place)
        place.mkdir(exist_ok=True, mode=0o700)
        with (place / _LOCK).open("w"):
            return place
    except OSError:
        return None


def _known(place: Path, rules: Rules) -> Downloaded | None:
    """What is kept, if it is whole and within the rules."""
    try:
        about = json.loads((place / _ABOUT).read_text(encoding="utf-8"))
        size = (place / _CONTENT).stat().st_size
        known = Downloaded(about["content_type"], Validator(**about["validator"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if size == about.get("size") and size <= rules.max_bytes else None


def _keep(place: Path, beside: Path, found: Downloaded) -> None:
    """The content first: about.json without it would vouch for nothing, and with another's size is not believed."""
    about = place / _ABOUT
    about.unlink(missing_ok=True)
    size = beside.stat().st_size
    os.chmod(beside, 0o600)
    os.replace(beside, place / _CONTENT)
    if found.validator:
        text = {"content_type": found.content_type, "size": size, "validator": asdict(found.validator)}
        about.write_text(json.dumps(text), encoding="utf-8")


def _forget(folder: Path, *, keep: Path) -> None:
    too_old = time.time() - FORGOTTEN_AFTER_S
    for place in folder.iterdir():
        about = place / _ABOUT
        if place != keep and about.is_file() and about.stat().st_mtime < too_old:
            shutil.rmtree(place, ignore_errors=True)


def _wait_for(descriptor: int) -> None:
    """Until the file is closed, by whatever end of this process. Not on systems without `fcntl`."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
