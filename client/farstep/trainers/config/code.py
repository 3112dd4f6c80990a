"""Python files of the user's that a configuration names (`code`): loaded before anything of theirs is looked up.

A file is loaded once, however often it is named; what it defines registers itself. Whether files may be loaded at all
is for whoever calls: a server that runs other people's configurations does not.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from farstep.trainers.errors import ConfigError

_PREFIX = re.compile(r"^_farstep_code_[0-9a-f]{12}_")


def load_code(paths: Iterable[object], *, folder: Path) -> list[ModuleType]:
    """
    Args:
        folder: what relative paths are relative to.

    Raises:
        ConfigError: there is no such file, or it cannot be loaded; what it raised is the cause.
    """
    return [_module(path, folder) for path in paths]


def without_code_prefix(module: str) -> str:
    """A module's name as its author knows it: `train`, for what was loaded from train.py."""
    return _PREFIX.sub("", module)


def _module(path: object, folder: Path) -> ModuleType:
    if not isinstance(path, str):
        raise ConfigError(f"{path!r} is no path", field="code")
    file = (folder / Path(path).expanduser()).resolve()
    if not file.is_file() or file.suffix != ".py":
        raise ConfigError(f"no Python file {file}", field="code")
    name = f"_farstep_code_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{file} cannot be loaded: {type(error).__name__}: {error}", field="code") from error
    return module
