"""The tokenizer of the model that a server serves, from its files, loaded by transformers.

The files come from the server itself, so that a laptop needs no model hub. They are kept under the user's
cache directory, one folder per content hash, which is complete or not there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from farstep._loop import run
from farstep.errors import MissingExtraError, checked
from farstep_proto import paths
from farstep_proto.names import check_name
from farstep_proto.v1 import training_pb2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from farstep._connection import Connection


def tokenizer_of(connection: Connection) -> PreTrainedTokenizerBase:
    """Loaded once a connection.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    if connection.tokenizer is None:
        _require_transformers()
        files = run(connection.call("GET", paths.TOKENIZER, training_pb2.TokenizerFiles))
        connection.tokenizer = _load(files)
    return connection.tokenizer


def _require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("get_tokenizer needs transformers", hint="pip install 'farstep[tokenizers]'") from error


def _load(files: training_pb2.TokenizerFiles) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    folder = _cached(files)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    return tokenizer


def _cached(files: training_pb2.TokenizerFiles) -> Path:
    with checked():
        names = sorted(check_name(name, field="files") for name in files.files)
    folder = _cache_dir() / _content_hash(files, names)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
    try:
        for name in names:
            (unfinished / name).write_bytes(files.files[name])
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, with the same content
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _content_hash(files: training_pb2.TokenizerFiles, names: Sequence[str]) -> str:
    """Computed here: a hash that a server merely claims could put its files in another one's place."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {len(files.files[name])}\n".encode())
        digest.update(files.files[name])
    return digest.hexdigest()


def _cache_dir() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "farstep" / "tokenizers"
