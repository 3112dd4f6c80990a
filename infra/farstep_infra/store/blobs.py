"""Blobs by key, in a directory or in a bucket: what checkpoints in a bucket and published policies are kept in.

A key is a relative path whose parts were checked by whoever made it. It knows bytes, nothing of
checkpoints or policies.

Invariant: a key holds all of what one `put` was given, or what was there before.
"""

from __future__ import annotations

import builtins
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from farstep_infra.store.durable import clear_disk_errors, replace_file
from farstep_proto.errors import Internal, InvalidInput, NotFound

if TYPE_CHECKING:
    from botocore.client import BaseClient

_SINGLE_PUT_BYTES = 64 << 20
_ATTEMPTS = 20
_LOCK = "lock~"


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

    def change(self, key: str, changed: Callable[[bytes | None], bytes]) -> None:
        """Puts what `changed` makes of the content (None: there is none), one writer at a time.

        It may be asked more than once. Raises as `put`, and whatever `changed` raises.
        """
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

    def change(self, key: str, changed: Callable[[bytes | None], bytes]) -> None:
        path = self.root / key
        with clear_disk_errors(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path.with_name(_LOCK), "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                before = path.read_bytes() if path.exists() else None
                replace_file(path, changed(before))


class Changed(Exception):
    """A key does not hold what the caller took for granted."""


class S3Blobs:
    """Blobs as the objects of a bucket whose keys begin with a prefix.

    Unlike files, they can be replaced under a condition: a tag is S3's ETag, another one for other content.
    """

    def __init__(self, client: BaseClient, *, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    def put(self, key: str, data: bytes) -> None:
        with self._clear_errors(key):
            if len(data) <= _SINGLE_PUT_BYTES:
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)
            else:  # in parts, each tried again by itself
                self._client.upload_fileobj(io.BytesIO(data), self._bucket, self._prefix + key)

    def put_if(self, key: str, data: bytes, *, tag: str | None) -> None:
        """Puts where the key still has that tag; None: where there is nothing.

        Raises:
            Changed: it has not.
        """
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        with self._clear_errors(key):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data, **condition)

    def get(self, key: str) -> bytes:
        return self.get_tagged(key)[0]

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        """Content and tag; raises as `get`."""
        with self._clear_errors(key):
            found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            data: bytes = found["Body"].read()
        return data, str(found["ETag"])

    def delete(self, key: str) -> None:
        with self._clear_errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def change(self, key: str, changed: Callable[[bytes | None], bytes]) -> None:
        for _ in range(_ATTEMPTS):
            before: tuple[bytes, str] | None = None
            with suppress(NotFound):
                before = self.get_tagged(key)
            try:
                self.put_if(key, changed(before and before[0]), tag=before and before[1])
            except Changed:
                continue
            return
        raise Internal(f"{key} is being changed again and again by others")

    def within(self, folder: str) -> S3Blobs:
        """Those whose keys begin with a folder, without it."""
        return S3Blobs(self._client, bucket=self._bucket, prefix=self._prefix + folder)

    def delete_if(self, key: str, *, tag: str) -> None:
        """Raises Changed where the key has not that tag any more."""
        with self._clear_errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key, IfMatch=tag)

    def list(self, folder: str = "") -> builtins.list[str]:
        """The first parts of all keys in a folder, which ends with a slash, sorted."""
        within = self._prefix + folder
        with self._clear_errors(folder):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=within, Delimiter="/"
            )
            folders = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
        return sorted(entry.removeprefix(within).rstrip("/") for entry in folders)

    def entries(self, folder: str) -> Iterator[tuple[str, float]]:
        """Every key in a folder and below, and when it was put, in seconds since the epoch."""
        with self._clear_errors(folder):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + folder
            )
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry["Key"].removeprefix(self._prefix), entry["LastModified"].timestamp()

    def signed_url(self, key: str, *, ttl_s: int) -> str:
        """An address at which anybody gets the object for so long."""
        where = {"Bucket": self._bucket, "Key": self._prefix + key}
        with self._clear_errors(key):
            url: str = self._client.generate_presigned_url("get_object", Params=where, ExpiresIn=ttl_s)
        return url

    @contextmanager
    def _clear_errors(self, key: str) -> Iterator[None]:
        """Raises NotFound for a key that is not there, Changed for a condition that does not hold, else Internal."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"s3://{self._bucket}/{self._prefix}"
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                raise Changed(key) from error
            if code in ("NoSuchKey", "404"):
                raise NotFound(f"no {key} in {where}") from error
            raise Internal(f"{where} refuses {key}: {error}", hint="look at the bucket and its rights") from error
        except (BotoCoreError, Boto3Error) as error:
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
        return open_s3(uri, field=field)
    raise InvalidInput(f"{uri!r} is neither file:///directory nor s3://bucket/prefix", field=field)


def open_s3(uri: str, *, field: str) -> S3Blobs:
    """The blobs at `s3://bucket/prefix`.

    Raises:
        InvalidInput: the URI is none, or boto3 is not installed.
    """
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise InvalidInput(f"{uri!r} is not s3://bucket/prefix", field=field)
    return S3Blobs(_s3_client(field), bucket=parts.netloc, prefix=parts.path.strip("/"))


def _s3_client(field: str) -> BaseClient:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise InvalidInput(
            f"s3:// needs boto3, which is not installed ({error})", field=field, hint="pip install 'farstep[s3]'"
        ) from error
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 3},
        signature_version="s3v4",  # the older one is not taken everywhere, and is still the default of signed URLs
        request_checksum_calculation="when_required",  # many servers do not know the newer ones; ours are in manifests
        response_checksum_validation="when_required",
    )
    client: BaseClient = boto3.client("s3", config=config)
    return client
