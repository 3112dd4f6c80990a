"""Messages that are nearly right: of the right kind, with hostile values in some of their fields; then their bytes.

All of it is drawn from a `random.Random`, so that a seed repeats a run of requests, as far as the servers' own timing
allows. Some fields are never drawn freely, because what they ask for is costly and not what is tested: minutes of
waiting, a thousand tokens, another model's processes.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from farstep_proto.tensors import ids_to_bytes
from farstep_proto.v1 import common_pb2, operations_pb2, sampling_pb2, training_pb2

INT32 = (0, 1, 2, 3, -1, 7, 255, 1023, 1024, 2**31 - 1, -(2**31))
INT64 = (*INT32, 2**53, 2**63 - 1, -(2**63))
NUMBERS = (0.0, 1.0, 0.5, -1.0, 1e-300, 1e300, -0.0, math.nan, math.inf, -math.inf)
NAMES = (
    "", "a", "fuzz", ".", "..", "...", "../../etc/passwd", "..%2f..%2fetc", "%2e%2e", "a/b", "a\\b", "/etc/passwd",
    "a b", "a\0b", "\0", "é", "ⅷ", "．．／", "x" * 128, "x" * 129, "x" * 5000, "C:\\x", "con", "-rf", "~", "a:b",
    "'; drop table runs", "bt://loops:../weights/x", "bt://loops:fuzz/weights/one", "tinker://fuzz/sampler_weights/one",
    "http://[", "https://",
    "{}", "[[[", "(", "a{9999999}", "%s%n", "<script>", "\ufeff", "\u202e", "😀" * 40,
)  # fmt: skip
BYTES = (
    b"",
    b"\0",
    b"\xff" * 3,
    b"\xff" * 8,
    bytes(64),
    struct.pack("<2f", math.nan, math.inf),
    b"\x80\x04N.",
    b"PK\3\4",
)
TINY = "farstep/tiny"

_WAITS = (0.0, 0.01, -1.0, math.nan, -math.inf)
_NO_MODELS = ("", "../x", "a/b/c", "\0", "/etc", "x" * 300, "é")  # a control plane starts processes for any other
FIELDS: Mapping[str, tuple[Any, ...]] = {
    "wait_s": _WAITS,
    "gate_wait_s": (*_WAITS, math.inf),
    "max_tokens": (0, 1, 4, -1, 2**31 - 1),
    "num_samples": (0, 1, 2, -1, 2**31 - 1),
    "rank": (0, 1, 4, -1, 513, 2**31 - 1),
    "lora_rank": (0, 1, 4, -1, 513, 2**31 - 1),
    "replicas": (0, 1, -1, 65, 2**31 - 1),
    "sampler_replicas": (0, 1, -1, 65, 2**31 - 1),
    "loss_fn": ("cross_entropy", "ppo", "dpo", "value", "", "no_such_loss", "\0"),
    "adapter": ("", "current", "base", "start", "other"),
    "url": (
        "",
        "http://[",
        "http://a:b",
        "ftp://x",
        "http://x:0",
        "file:///etc/passwd",
        "http://u@x",
        "http://x:99999",
    ),
}
_FIELDS_OF: Mapping[str, tuple[Any, ...]] = {
    "farstep.v1.ProvisionSamplerRequest.base_model": _NO_MODELS,
    "farstep.v1.ProvisionRunRequest.base_model": (*_NO_MODELS, "fake/one"),
    "farstep.v1.CreateRunRequest.base_model": (TINY, TINY, "", "other/model", "\0"),
}


def _datum() -> common_pb2.Datum:
    chunk = common_pb2.Chunk(encoded_text=common_pb2.EncodedTextChunk(tokens=ids_to_bytes([1, 40, 41])))
    targets = common_pb2.Tensor(dtype=common_pb2.DTYPE_INT64, shape=[3], data=struct.pack("<3q", 40, 41, 42))
    floats = common_pb2.Tensor(dtype=common_pb2.DTYPE_FLOAT32, shape=[3], data=struct.pack("<3f", 0.5, 1, -1))
    inputs = {"target_tokens": targets, "weights": floats}
    return common_pb2.Datum(model_input=common_pb2.ModelInput(chunks=[chunk]), loss_fn_inputs=inputs)


def _forward() -> Message:
    return training_pb2.ForwardRequest(data=[_datum(), _datum()], loss_fn="cross_entropy")


def _sample() -> Message:
    return sampling_pb2.SampleRequest(
        prompt=_datum().model_input, num_samples=1, params=sampling_pb2.SamplingParams(max_tokens=3, seed=1)
    )


# What is right, where an empty message is not.
RIGHT: Mapping[str, Callable[[], Message]] = {
    "ForwardRequest": _forward,
    "SampleRequest": _sample,
    "OptimStepRequest": lambda: training_pb2.OptimStepRequest(learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-8),
    "SaveStateRequest": lambda: training_pb2.SaveStateRequest(name="one", overwrite=True),
    "PublishRequest": lambda: training_pb2.PublishRequest(),
    "LoadStateRequest": lambda: training_pb2.LoadStateRequest(path="bt://loops:fuzz/weights/one"),
    "ResetRequest": lambda: training_pb2.ResetRequest(lora_rank=4),
    "CreateRunRequest": lambda: training_pb2.CreateRunRequest(base_model=TINY, lora=common_pb2.LoraConfig(rank=4)),
    "PollRequest": lambda: operations_pb2.PollRequest(client_id="fuzz", wait_s=0.01),
}


def near(kind: type[Message], rng: random.Random) -> Message:
    """A message of the kind: as it should be, with up to three fields changed."""
    right = RIGHT.get(kind.DESCRIPTOR.name)
    message = right() if right else kind()
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        change(message, rng)
    if isinstance(message, sampling_pb2.SampleRequest) and not message.params.HasField("max_tokens"):
        message.params.max_tokens = 3  # absent, it is up to the model's context
    return message


def change(message: Message, rng: random.Random, *, depth: int = 0) -> None:
    """Puts something else into one field, here or further in."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = rng.choice(fields)
    is_repeated = _is_repeated(field)
    if rng.random() < 0.15 and message.ListFields():
        message.ClearField(rng.choice(message.ListFields())[0].name)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        _change_map(getattr(message, field.name), field, rng, depth)
    elif field.message_type is not None:
        if depth > 6:
            return
        inner = getattr(message, field.name)
        if is_repeated:
            inner = rng.choice(inner) if inner and rng.random() < 0.7 else inner.add()
        else:
            inner.SetInParent()
        change(inner, rng, depth=depth + 1)
    elif is_repeated:
        getattr(message, field.name).extend(_scalar(field, rng) for _ in range(rng.choice((1, 2, 50))))
    else:
        setattr(message, field.name, _scalar(field, rng))


def _change_map(entries: Any, field: FieldDescriptor, rng: random.Random, depth: int) -> None:
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    chosen = rng.choice(sorted(entries)) if entries and rng.random() < 0.6 else _scalar(key, rng)
    if value.message_type is not None:
        change(entries[chosen], rng, depth=depth + 1)
    else:
        entries[chosen] = _scalar(value, rng)


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    known = _FIELDS_OF.get(field.full_name) or FIELDS.get(field.name)
    if known is not None:
        return rng.choice(known)
    if field.enum_type is not None:
        return rng.choice([value.number for value in field.enum_type.values] + [77])
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_INT32:
            return rng.choice(INT32)
        case FieldDescriptor.CPPTYPE_INT64:
            return rng.choice(INT64)
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice(NUMBERS)
        case _ if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.choice(BYTES)
        case _:
            return rng.choice(NAMES)


@cache
def _is_repeated(field: FieldDescriptor) -> bool:
    proto = descriptor_pb2.DescriptorProto()
    field.containing_type.CopyToProto(proto)
    return proto.field[field.index].label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED


# Bytes


def in_json(message: Message, rng: random.Random) -> bytes:
    """The message's JSON; sometimes with a value of a wrong type, a name that is none, or one twice."""
    text = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)
    if rng.random() < 0.6:
        return text.encode()
    found = json.loads(text)
    name = rng.choice(message.DESCRIPTOR.fields).name if message.DESCRIPTOR.fields else "x"
    wrong: tuple[Any, ...] = (
        None,
        True,
        "x",
        "NaN",
        "1",
        [],
        [1],
        [None],
        {},
        {"a": 1},
        1.5,
        2**70,
        "9" * 400,
        "\ud800",
    )
    if name in FIELDS:  # numbers in plenty of which would be taken as they are
        wrong = tuple(each for each in wrong if not isinstance(each, int | float) and each != "9" * 400)
    found[rng.choice((name, name, "no_such_field"))] = rng.choice(wrong)
    if rng.random() < 0.1:
        return b"[" * rng.choice((10, 90, 20_000))
    body = json.dumps(found).encode()
    return body[:-1] + b"," + body[1:] if rng.random() < 0.1 else body


def broken(body: bytes, rng: random.Random) -> bytes:
    """Bytes that are hardly a message any more."""
    data = bytearray(body)
    match rng.randrange(8):
        case 0 if data:
            for _ in range(rng.choice((1, 3, 10))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1 if data:
            del data[rng.randrange(len(data)) :]
        case 2:
            data += b"\x0a\xff\xff\xff\xff\x07"  # a field of 2 GiB
        case 3:
            data += b"\x0a" + b"\xff" * 10 + b"\x01"  # a length that is no number
        case 4:
            data += b"\x0b" * rng.choice((5, 99, 5000))  # groups in groups
        case 5:
            data += b"\xfa\xff\xff\xff\x0f\x03abc" * 3  # a field that nobody knows
        case 6:
            data += data * 3
        case _:
            data = bytearray(rng.randbytes(rng.choice((1, 20, 200))))
    return bytes(data)
