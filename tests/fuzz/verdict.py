"""Whether an answer is one that the server's own document allows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import jsonschema
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from farstep_proto import paths
from tests.fuzz.requests import Operation

_MEANT = (b"UnavailableError", b"StorageFullError")  # a database or disk that cannot just now, as it says itself


def is_meant(status: int, content: bytes) -> bool:
    """Whether a status from 500 on is one that a server may answer, busy or full as it is."""
    return status in (503, 507) and any(name in content for name in _MEANT)


class Verdicts:
    def __init__(self, document: Mapping[str, Any]) -> None:
        self._components = {"components": document["components"]}

    @cache  # noqa: B019 - one object a run
    def _validator(self, reference: str) -> jsonschema.Draft202012Validator:
        return jsonschema.Draft202012Validator({"$ref": reference, **self._components})

    def complaint(
        self, operation: Operation, status: int, media_type: str, content: bytes, *, is_spoilt: bool = False
    ) -> str:
        """What is wrong with the answer; empty: nothing."""
        if status >= 500 and not is_meant(status, content):
            return f"status {status}: {content[:300]!r}"
        if is_spoilt or b"Invalid HTTP request received" in content:  # another route's, or none
            return ""
        responses = operation.schema["responses"]
        described = responses.get(str(status)) or (responses["5XX"] if status >= 500 else None)
        if described is None:
            return f"status {status} is not in the document: {content[:300]!r}"
        media = media_type.split(";")[0]
        if media not in described["content"]:
            return f"{status} in {media_type!r}, which the document has not"
        return self._misfit(described["content"], media, content)

    def _misfit(self, described: Mapping[str, Any], media: str, content: bytes) -> str:
        schema = described[media]["schema"]
        try:
            if media == paths.PROTOBUF:
                name = schema["x-protobuf-message"]
                message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name)).FromString(
                    content
                )
            elif media == paths.JSON:
                found = json.loads(content)
                if "$ref" in schema:
                    self._validator(schema["$ref"]).validate(found)
                else:
                    jsonschema.validate(found, schema)
        except (ValueError, DecodeError, jsonschema.ValidationError) as error:
            return f"{media} that does not fit: {str(error)[:300]}"
        return ""
