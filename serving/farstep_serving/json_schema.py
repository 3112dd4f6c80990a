"""JSON schemas of protobuf messages, as protobuf's JSON has them with the field names of the .proto files.

It knows the mapping of the protobuf documentation and nothing of HTTP. A schema says what the server writes; where the
parser takes more (numbers in quotation marks, camelCase, null for a default) it keeps quiet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, cast

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

REF = "#/components/schemas/"

_INT32 = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
_UINT32 = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_INT64 = {"type": ["string", "integer"], "format": "int64", "pattern": r"^-?[0-9]{1,19}$"}
_NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
_SCALARS: Mapping[int, dict[str, Any]] = {
    FieldDescriptor.TYPE_DOUBLE: _NUMBER,
    FieldDescriptor.TYPE_FLOAT: _NUMBER,
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_UINT64: _INT64,
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}


def schemas_of(kind: type[Message]) -> dict[str, dict[str, Any]]:
    """The schemas of a message and of all that are in it, by name."""
    found: dict[str, dict[str, Any]] = {}
    waiting = [cast(Descriptor, kind.DESCRIPTOR)]
    while waiting:
        each = waiting.pop()
        if each.name not in found:
            found[each.name] = _schema(each)
            waiting += [field.message_type for field in _fields(each) if field.message_type is not None]
    return found


def _schema(message: Descriptor) -> dict[str, Any]:
    repeated = _repeated(message)
    properties = {
        field.name: _described(_property(field, is_repeated=field.name in repeated), field.full_name)
        for field in message.fields
    }
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    choices = [_at_most_one(oneof) for oneof in message.oneofs if not _is_optional(oneof)]
    if choices:
        schema["allOf"] = choices
    return _described(schema, message.full_name)


def _property(field: FieldDescriptor, *, is_repeated: bool) -> dict[str, Any]:
    if (entry := _map_entry(field)) is not None:
        key, value = (entry.fields_by_name[name] for name in ("key", "value"))
        is_text = key.type == FieldDescriptor.TYPE_STRING
        names = {} if is_text else {"propertyNames": {"pattern": r"^-?[0-9]{1,19}$"}}
        return {"type": "object", "additionalProperties": _value(value), **names}
    return {"type": "array", "items": _value(field)} if is_repeated else _value(field)


def _value(field: FieldDescriptor) -> dict[str, Any]:
    if field.message_type is not None:
        return {"$ref": REF + field.message_type.name}
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    return dict(_SCALARS[field.type])


def _fields(message: Descriptor) -> list[FieldDescriptor]:
    """With the values of maps instead of the maps."""
    entries = ((field, _map_entry(field)) for field in message.fields)
    return [field if entry is None else entry.fields_by_name["value"] for field, entry in entries]


def _repeated(message: Descriptor) -> set[str]:
    """The names of its repeated fields; descriptors themselves say it differently from one protobuf to the next."""
    proto = descriptor_pb2.DescriptorProto()
    message.CopyToProto(proto)
    return {field.name for field in proto.field if field.label == field.LABEL_REPEATED}


def _map_entry(field: FieldDescriptor) -> Descriptor | None:
    """The message of one entry, where the field is a map."""
    entry = field.message_type
    return entry if entry is not None and entry.GetOptions().map_entry else None


def _is_optional(oneof: OneofDescriptor) -> bool:
    """Whether it is how protobuf keeps the presence of one `optional` field."""
    return len(oneof.fields) == 1 and oneof.name == f"_{oneof.fields[0].name}"


def _at_most_one(oneof: OneofDescriptor) -> dict[str, Any]:
    present = [{"required": [field.name]} for field in oneof.fields]
    return {"oneOf": [*present, {"not": {"anyOf": present}}]}


def _described(schema: dict[str, Any], full_name: str) -> dict[str, Any]:
    comment = _comments().get(full_name)
    return {**schema, "description": comment} if comment else schema


@cache
def _comments() -> Mapping[str, str]:
    """What the .proto files say of messages and fields, by full name."""
    text = files("farstep_proto").joinpath("v1", "comments.json").read_text(encoding="utf-8")
    comments: dict[str, str] = json.loads(text)
    return comments
