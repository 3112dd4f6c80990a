"""Custom losses: what the Tinker SDK uploads, and the id that it gets for it.

The id *is* the loss: its graph, packed. So nothing has to be kept for it, every operation has all that a replay needs,
and no restart forgets one. That an id was made here proves nothing, and need not: a graph is checked again wherever it
arrives.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from farstep_proto.custom_loss import MAX_BYTES, CustomLoss
from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import training_pb2

_PREFIX = "graph-"
_MAX_PACKED = 2 * MAX_BYTES


def loss_id_of(body: Mapping[str, Any]) -> str:
    """The id for the body of `create_custom_loss`.

    Raises:
        InvalidInput: naming the field: something is missing, or the graph is not one that is taken.
    """
    graph = body.get("graph")
    inputs = body.get("inputs")
    if not isinstance(graph, dict) or not isinstance(graph.get("nodes"), list):
        raise InvalidInput("not an object with nodes", field="graph")
    if graph.get("format", 1) != 1:
        raise InvalidInput(f"{graph['format']!r} is no format that is known", field="graph.format")
    if not isinstance(inputs, list) or not all(_is_input(each) for each in inputs):
        raise InvalidInput("not a list of names and ranks", field="inputs")
    message = training_pb2.CustomLoss(
        name=str(body.get("name", ""))[:128],
        inputs=[training_pb2.CustomLossInput(name=each["name"], rank=each["rank"]) for each in inputs],
        nodes=json.dumps(graph["nodes"], separators=(",", ":")).encode(),
    )
    CustomLoss.from_proto(message, field="create_custom_loss")
    packed = zlib.compress(message.SerializeToString(deterministic=True), 9)
    return _PREFIX + base64.urlsafe_b64encode(packed).decode()


def custom_loss_of(loss_id: str) -> training_pb2.CustomLoss:
    """The loss that an id stands for; raises InvalidInput where it stands for none."""
    unknown = InvalidInput(
        "no custom loss has this id", field="loss_fn_config.loss_id", hint="the id that create_custom_loss gave"
    )
    if not loss_id.startswith(_PREFIX) or len(loss_id) > _MAX_PACKED:
        raise unknown
    try:
        packed = base64.b64decode(loss_id.removeprefix(_PREFIX), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        message = training_pb2.CustomLoss.FromString(unpacker.decompress(packed, _MAX_PACKED))
    except (ValueError, binascii.Error, zlib.error, DecodeError) as error:
        raise unknown from error
    CustomLoss.from_proto(message)
    return message


def _is_input(given: object) -> bool:
    return (
        isinstance(given, dict)
        and isinstance(given.get("name"), str)
        and isinstance(given.get("rank"), int)
        and 0 <= given["rank"] <= 2
    )
