"""Files that are whole or not there: written beside their place, put on the disk, then moved into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_whole(path: str | Path, content: str | Callable[[IO[str]], object]) -> Path:
    """Writes a text, or what a function writes, in place of what was there. Raises OSError; then that is as it was."""
    place = Path(path).expanduser()
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}~{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8", newline="") as out:
            if isinstance(content, str):
                out.write(content)
            else:
                content(out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, place)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return place
