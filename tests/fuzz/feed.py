"""The policy feed, subscribed to by those who should not: garbage, wrong keys, and subscribers that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import grpc
import grpc.aio

from farstep_proto.v1 import feed_pb2
from tests.fuzz import messages

_SERVICE = "/farstep.v1.PolicyFeed/"
_MAY = {
    "CANCELLED", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "NOT_FOUND", "UNIMPLEMENTED", "INVALID_ARGUMENT", "OK",
    "INTERNAL",  # what gRPC itself answers to bytes that are no message
}  # fmt: skip


async def attack_feed(address: str, *, key: str, num_calls: int, seed: int) -> tuple[Counter[str], list[str]]:
    """How calls ended, by gRPC's status, and what should not have been."""
    rng = random.Random(f"{seed}/feed")
    ends: Counter[str] = Counter()
    complaints: list[str] = []
    for start in range(0, num_calls, 20):
        async with grpc.aio.insecure_channel(address) as channel:
            calls = [_call(channel, key, rng) for _ in range(min(20, num_calls - start))]
            for status, said in await asyncio.gather(*calls):
                ends[status] += 1
                if status not in _MAY and "DecodeError" not in said:
                    complaints.append(f"{status}: {said}")
        if start % 200 == 0:
            await _garbage(address, rng)
    return ends, complaints


async def _call(channel: grpc.aio.Channel, key: str, rng: random.Random) -> tuple[str, str]:
    kind, method = rng.choice(((feed_pb2.SubscribeRequest, "Subscribe"), (feed_pb2.FetchRequest, "Fetch")))
    body = messages.near(kind, rng).SerializeToString()
    if rng.random() < 0.3:
        body = messages.broken(body, rng)
    method = method if rng.random() < 0.95 else rng.choice(("", "Nothing", "../Fetch"))
    authorization = f"Bearer {key}" if rng.random() < 0.8 else rng.choice(("", "Bearer x", "Basic x"))
    metadata = (("authorization", authorization), ("x-more", "y" * rng.choice((1, 1000))))
    call = channel.unary_stream(_SERVICE + method)(body, metadata=metadata, timeout=rng.choice((0.05, 0.2, 1.0)))
    try:
        for _ in range(rng.choice((0, 1, 3))):  # the others go away without having read
            await call.read()
        if rng.random() < 0.5:
            call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            while await call.read() is not grpc.aio.EOF:
                pass
        code = await call.code()
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    except asyncio.CancelledError:
        return "CANCELLED", ""
    return code.name, ""


async def _garbage(address: str, rng: random.Random) -> None:
    host, port = address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    with contextlib.suppress(ConnectionError):
        writer.write(
            rng.choice(
                (b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(500), rng.randbytes(99))
            )
        )
        await writer.drain()
    writer.close()
