"""Templates of prompts: text with `{name}` or `{{ name }}` where something is put in. Braces around anything else are
text, so that a prompt may have JSON in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from farstep.trainers.errors import DataError

_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}|\{([A-Za-z_]\w*)\}")


def placeholders(text: str) -> frozenset[str]:
    return frozenset(_name(found) for found in _PLACEHOLDER.finditer(text))


def filled(text: str, values: Mapping[str, Any]) -> str:
    """The text with the values in it.

    Raises:
        DataError: one is missing.
    """
    missing = sorted(placeholders(text) - values.keys())
    if missing:
        raise DataError("is missing", field=missing[0], hint=f"there are: {', '.join(map(str, values)) or 'none'}")
    return _PLACEHOLDER.sub(lambda found: str(values[_name(found)]), text)


def _name(found: re.Match[str]) -> str:
    return found[1] or found[2]
