"""JSON bodies of the Tinker wire: read into checked models, and written from them.

Fields that nobody knows are left alone, since SDKs grow; of those that are known, types are strict and a mistake names
the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from farstep_proto import paths
from farstep_proto.errors import InvalidInput
from farstep_serving.bodies import bodies_of, read_body
from farstep_serving.descriptions import Media
from farstep_serving.messages import MAX_MESSAGE_BYTES

_REF = "#/components/schemas/"
# Of an operation on its way in, but for passes. Of a larger one nobody reads the number: it leaves a gap in its run.
MAX_OPERATION_BYTES = 64 << 20
_MAX_TOLD = 3  # mistakes that one answer tells of


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=())


B = TypeVar("B", bound=Body)


async def read_json(request: Request, kind: type[B], *, limit: int = MAX_MESSAGE_BYTES) -> B:
    """Raises as `read_body`, and InvalidInput naming the field."""
    raw = await read_body(request, limit=limit)
    return await bodies_of(request).decoded(len(raw), lambda: parse_json(raw, kind))


def parse_json(raw: bytes, kind: type[B]) -> B:
    """Raises:
    InvalidInput: naming the field.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise refused(error) from error


def refused(error: ValidationError) -> InvalidInput:
    """What is wrong, field by field; values are not repeated."""
    mistakes = [(".".join(map(str, each["loc"])) or "body", each["msg"]) for each in error.errors(include_input=False)]
    told = "; ".join(f"{where}: {what}" for where, what in mistakes[:_MAX_TOLD])
    more = f"; and {len(mistakes) - _MAX_TOLD} more" if len(mistakes) > _MAX_TOLD else ""
    return InvalidInput((told + more).encode(errors="replace").decode(), field=mistakes[0][0])


def answer(body: Body, *, status: int = 200) -> Response:
    """The body as JSON, without what it leaves open."""
    return Response(body.model_dump_json(exclude_none=True), status_code=status, media_type=paths.JSON)


def media(kind: type[Body]) -> Media:
    """For `describe`: the body and the models in it, all under their class names."""
    schema: dict[str, Any] = kind.model_json_schema(ref_template=_REF + "Tinker{model}")
    definitions: Mapping[str, Any] = schema.pop("$defs", {})
    name = f"Tinker{kind.__name__}"
    named = {f"Tinker{each}": definition for each, definition in definitions.items()}
    return Media({paths.JSON: {"$ref": _REF + name}}, {**named, name: schema})
