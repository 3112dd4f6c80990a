"""What several of a sampler's routes say of themselves: gates, streams, and the bodies of the OpenAI API.

The answers of the OpenAI routes are described by their outline alone: OpenAI's own documentation has them in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from farstep_proto import paths
from farstep_proto.errors import ApiError, NotFound, PolicyNotReady, TooManyRequests
from farstep_proto.v1 import sampling_pb2
from farstep_serving.descriptions import Media, header
from farstep_serving.json_schema import REF, schemas_of

VERSION: Mapping[str, Any] = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
GATE = (
    header(paths.MIN_POLICY_VERSION, "serve the run's policy of this version or a newer one", **VERSION),
    header(paths.EXACT_POLICY_VERSION, "serve the run's policy of exactly this version", **VERSION),
)
SAMPLING_ERRORS: tuple[type[ApiError], ...] = (NotFound, PolicyNotReady, TooManyRequests)
EVENTS = Media(
    {
        paths.EVENT_STREAM: {"type": "string", "description": f"server-sent events, each a {REF}SampleEvent"},
        paths.PROTOBUF_STREAM: {"type": "string", "format": "binary"},
    },
    schemas_of(sampling_pb2.SampleEvent),
)

_OPENAI = "OpenAI"
_ERROR = {
    "type": "object",
    "required": ["message", "type", "param", "code"],
    "properties": {
        "message": {"type": "string"},
        "type": {"type": "string"},
        "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]},
    },
}
OPENAI_ERROR = Media({paths.JSON: {"type": "object", "required": ["error"], "properties": {"error": _ERROR}}})


def openai_body(kind: type[BaseModel]) -> Media:
    """A body that pydantic checks; its parts are told from our messages by their names."""
    schema = kind.model_json_schema(ref_template=f"{REF}{_OPENAI}{{model}}")
    parts = {f"{_OPENAI}{name}": part for name, part in schema.pop("$defs", {}).items()}
    return Media(
        {paths.JSON: {"$ref": f"{REF}{_OPENAI}{kind.__name__}"}}, {f"{_OPENAI}{kind.__name__}": schema, **parts}
    )


def openai_answer(kind: str, *, streams: bool = False) -> Media:
    """An object that says which kind it is; `streams` where it may come as chunks of it."""
    schema = {"type": "object", "required": ["object"], "properties": {"object": {"const": kind}}}
    return Media({paths.JSON: schema, **({paths.EVENT_STREAM: {"type": "string"}} if streams else {})})
