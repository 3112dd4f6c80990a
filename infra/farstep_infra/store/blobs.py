"""Blobs by key, in a directory or in a bucket: what published policies are kept in.

A key is a relative path whose parts were checked by whoever made it. It knows bytes, nothing of policies.

Invariant: a key holds all of what one `put` was given, or what was there before.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from farstep_infra.store.durable import clear_disk_errors, replace_file
from farstep_proto.errors import Internal, InvalidInput, NotFound

if TYPE_CHECKING:
    from botocore.client import BaseClient


class Blobs(Protocol):
    """Calls block, and may be made from any thread."""

    def put(self, key: str, data: bytes) -> None:
        """Raises Internal when it cannot be written; nothing is left then."""
        ...

    def get(self, key: str) -> bytes:
        """Raises NotFound, or Internal when nobody can tell."""
        ...

    def delete(self, key: str) -> None:
        """Does nothing where there is none."""
        ...

    def list(self) -> list[str]:
        """The first parts of all keys, sorted."""
        ...


class FileBlobs:
    """Blobs as files under one directory, which is made when it is first written to."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        with clear_disk_errors(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)

    def get(self, key: str) -> bytes:
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no {key} in {self.root}") from None
        except OSError as error:
            raise Internal(f"{key} in {self.root} cannot be read: {error.strerror}") from error

    def delete(self, key: str) -> None:
        path = self.root / key
        with suppress(FileNotFoundError):
            path.unlink()
        with suppress(OSError):  # the folder stays as long as anything is in it
            path.parent.rmdir()

    def list(self) -> builtins.list[str]:
        try:
            return sorted(name for name in os.listdir(self.root) if "~" not in name)
        except (FileNotFoundError, NotADirectoryError):
            return []


class S3Blobs:
    """Blobs as the objects of a bucket whose keys begin with a prefix."""

    def __init__(self, client: BaseClient, *, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    def put(self, key: str, data: bytes) -> None:
        with self._clear_errors(key):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    def get(self, key: str) -> bytes:
        with self._clear_errors(key):
            data: bytes = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"].read()
        return data

    def delete(self, key: str) -> None:
        with self._clear_errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def list(self) -> builtins.list[str]:
        with self._clear_errors(self._prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            folders = [folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", [])]
        return sorted(folder.removeprefix(self._prefix).rstrip("/") for folder in folders)

    @contextmanager
    def _clear_errors(self, key: str) -> Iterator[None]:
        """Raises NotFound for a key that is not there, Internal for everything else that S3 says."""
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"s3://{self._bucket}/{self._prefix}"
        try:
            yield
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                raise NotFound(f"no {key} in {where}") from error
            raise Internal(f"{where} refuses {key}: {error}", hint="look at the bucket and its rights") from error
        except BotoCoreError as error:
            raise Internal(f"{where} does not answer: {error}") from error


def open_blobs(uri: str, *, field: str = "weight_sync_uri") -> Blobs:
    """The blobs at `file:///directory` or `s3://bucket/prefix`.

    S3 is spoken to as boto3 is configured (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …).

    Raises:
        InvalidInput: the URI is neither, or boto3 is not installed.
    """
    parts = urlsplit(uri)
    if parts.query or parts.fragment:
        raise InvalidInput(f"{uri!r} has more than a place in it", field=field)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FileBlobs(Path(parts.path))
    if parts.scheme == "s3" and parts.netloc:
        return S3Blobs(_s3_client(field), bucket=parts.netloc, prefix=parts.path.strip("/"))
    raise InvalidInput(f"{uri!r} is neither file:///directory nor s3://bucket/prefix", field=field)


def _s3_client(field: str) -> BaseClient:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise InvalidInput(
            f"s3:// needs boto3, which is not installed ({error})", field=field, hint="pip install 'farstep[s3]'"
        ) from error
    retries = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 3})
    client: BaseClient = boto3.client("s3", config=retries)
    return client
