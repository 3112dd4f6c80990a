"""Requests to every route of a server's OpenAPI document: right ones, and ones with something wrong in every part."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from farstep_proto import paths
from farstep_proto.v1 import control_pb2, operations_pb2, sampling_pb2, training_pb2
from tests.fuzz import messages

# These stop the server, or have a router look for servers that are none; they have tests of their own.
LEFT_OUT = {("POST", paths.DRAIN)}
_KNOWN_TO_PROTOBUF = (control_pb2, operations_pb2, sampling_pb2, training_pb2)  # by being imported
HEADERS: tuple[tuple[str, str], ...] = (
    ("Content-Encoding", "gzip"), ("Content-Encoding", "zstd"), ("Content-Length", "-1"), ("Host", "["), ("Host", ""),
    ("Host", "a b"), ("Host", "x" * 3000), ("X-Forwarded-Proto", "javascript"), ("X-Forwarded-For", "\xff"),
    ("Range", "bytes=0-,0-,0-"), ("Cookie", "a" * 9000), ("Accept", "\xff"), ("Accept-Encoding", "zstd;q=1"),
    ("X-Policy-Version", "9" * 30), ("X-Min-Policy-Version", "-1"), ("X-Farstep-Client", "\xe9" * 3000),
    ("Authorization", ""), ("Authorization", "Bearer"), ("Authorization", "Basic \xff"),
    ("Idempotency-Key", "\xff\x01"),
)  # fmt: skip
MEDIA = (paths.PROTOBUF, paths.JSON, "", "text/plain", "application/xml", "multipart/form-data", "\xff", "*/*")
VERSION_WAITS = ("0", "0.01", "-1", "nan", "x", "")  # never long ones
QUERY: Mapping[str, Sequence[str]] = {
    "wait_s": VERSION_WAITS,
    "page": ("", "1", "0", "-1", "9" * 40, "nan~a/weights/b", "1.0~fuzz/weights/one", "\0", "x"),
    "min_version": ("0", "1", "-1", "9" * 18, "9" * 19, "٣"),
    "after": ("0", "-1", "9" * 30, "x"),
    "last": ("1", "0", "9" * 18, "x"),
    "part": ("0", "0", "0", "1", "-1", "9999", "9" * 30),
    "parts": ("1", "1", "1", "2", "0", "10001", "9" * 30),
}


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    body: type[Message] | None
    schema: Mapping[str, Any]

    @property
    def takes_json_only(self) -> bool:
        return "requestBody" in self.schema and self.body is None


@dataclass(frozen=True)
class Hostile:
    operation: Operation
    target: bytes  # as it stands in the request's first line
    headers: list[tuple[str, str]]
    content: bytes
    is_spoilt: bool  # the path may be another route's


@dataclass
class Known:
    """What exists on a server, as one worker of the fuzzer knows it."""

    key: str
    ids: dict[str, list[str]]
    seq: int = 1
    client_id: str = "fuzz"
    numbers: Any = field(default_factory=itertools.count)


def operations_of(document: Mapping[str, Any]) -> list[Operation]:
    return [
        Operation(method.upper(), path, _body_of(schema), schema)
        for path, methods in document["paths"].items()
        for method, schema in methods.items()
        if (method.upper(), path) not in LEFT_OUT
    ]


def _body_of(schema: Mapping[str, Any]) -> type[Message] | None:
    content = schema.get("requestBody", {}).get("content", {}).get(paths.PROTOBUF)
    if content is None or "x-protobuf-message" not in content["schema"]:
        return None
    name = content["schema"]["x-protobuf-message"]
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))


def request_of(operation: Operation, known: Known, rng: random.Random) -> Hostile:
    content, media = _content(operation, rng)
    headers = {
        "Authorization": f"Bearer {known.key}",
        "Accept": rng.choice((paths.PROTOBUF, paths.JSON)),
        "Content-Type": media,
        paths.CLIENT_ID: known.client_id,
    }
    if rng.random() < 0.05:
        name, value = rng.choice(HEADERS)
        headers[name] = value
    query = [(name, value) for name, value in _query(operation, known, rng) if rng.random() < 0.95]
    path, is_spoilt = _path(operation.path, known, rng)
    target = path + ("?" + urlencode(query) if query else "")
    return Hostile(operation, target.encode("latin-1"), list(headers.items()), content, is_spoilt)


def _content(operation: Operation, rng: random.Random) -> tuple[bytes, str]:
    if operation.body is None:
        return _json_content(operation, rng), paths.JSON
    message = messages.near(operation.body, rng)
    is_binary = rng.random() < 0.7
    content = message.SerializeToString() if is_binary else messages.in_json(message, rng)
    if rng.random() < 0.12:
        content = messages.broken(content, rng)
    media = paths.PROTOBUF if is_binary else paths.JSON
    return content, rng.choice(MEDIA) if rng.random() < 0.05 else media


def _json_content(operation: Operation, rng: random.Random) -> bytes:
    if not operation.takes_json_only:
        return b"" if rng.random() < 0.9 else rng.randbytes(20)
    body: dict[str, Any] = {"model": rng.choice((messages.TINY, "x", "")), "max_tokens": rng.choice((1, 3, -1, 2**40))}
    if operation.path == paths.OPENAI_CHAT:
        body["messages"] = [{"role": "user", "content": rng.choice(messages.NAMES)}]
    else:
        body["prompt"] = rng.choice((rng.choice(messages.NAMES), [1, 2], [[1], [-1]], [], ["a", "b"]))
    properties = (
        "n",
        "temperature",
        "stop",
        "seed",
        "logit_bias",
        "stream",
        "logprobs",
        "tools",
        "response_format",
        "x",
    )
    for name in rng.sample(properties, k=rng.choice((0, 1, 1, 2))):
        body[name] = rng.choice(
            (None, True, 0, 1, -1, 2**40, 1.5, "x", "", [], ["x"], {}, {"type": "json_object"}, {"1": 1})
        )
    content = json.dumps(body).encode()
    return messages.broken(content, rng) if rng.random() < 0.1 else content


def _path(template: str, known: Known, rng: random.Random) -> tuple[str, bool]:
    """A path, and whether it may not be of the template."""
    parts = [_part(part, known, rng) if part.startswith("{") else (part, False) for part in template.split("/")]
    path, is_spoilt = "/".join(text for text, _ in parts), any(spoilt for _, spoilt in parts)
    if rng.random() < 0.02:
        path += rng.choice(("/", "//", "/..", "/../../health", "%00", "%ff", "%", ";x=y", "%ed%a0%80"))
        is_spoilt = True
    return path, is_spoilt


def _part(part: str, known: Known, rng: random.Random) -> tuple[str, bool]:
    ids = known.ids.get(part.strip("{}"))
    if ids and rng.random() < 0.85:
        return rng.choice(ids), False
    text = rng.choice(messages.NAMES)
    quoted = quote(text, safe=rng.choice(("", "/:.")))
    is_spoilt = "/" in text or not text.strip(".")
    return (quote(quoted) if rng.random() < 0.1 else quoted), is_spoilt


def _query(operation: Operation, known: Known, rng: random.Random) -> list[tuple[str, str]]:
    found = []
    for parameter in operation.schema["parameters"]:
        name = parameter["name"]
        if parameter["in"] != "query":
            continue
        if name == "seq":
            found.append(
                (name, str(known.seq) if rng.random() < 0.95 else rng.choice(("0", "-1", "x", "9" * 18, "9" * 30)))
            )
        elif name == "key":
            found.append(
                (name, f"{known.client_id}-{next(known.numbers)}" if rng.random() < 0.9 else rng.choice(messages.NAMES))
            )
        elif rng.random() < 0.2 or parameter["required"]:
            found.append((name, rng.choice(QUERY.get(name, messages.NAMES))))
    return found
