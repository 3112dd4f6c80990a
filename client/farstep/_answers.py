"""What an HTTP answer means: a message, an error of ours, or something that no Farstep server says."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from farstep.errors import FarstepError, ServerError, TransportError, error_from_refusal
from farstep_proto import paths
from farstep_proto.framing import Unframer
from farstep_proto.v1 import common_pb2, sampling_pb2

if TYPE_CHECKING:
    import httpx

M = TypeVar("M", bound=Message)

RETRY_STATUSES = frozenset({408, 429, 502, 503, 504})


def parse(response: httpx.Response, reply: type[M], url: str) -> M:
    """Raises:
    ServerError: it is not what was asked for; a hotel's login page is not, and half an answer is not.
    """
    if paths.PROTOBUF not in response.headers.get("content-type", ""):
        raise ServerError(f"{url} answered without a {reply.DESCRIPTOR.name}", hint="is it a Farstep server?")
    try:
        return reply.FromString(response.content)
    except DecodeError as error:
        raise ServerError(f"{url} answered with a malformed {reply.DESCRIPTOR.name}") from error


def events_of(unframer: Unframer, chunk: bytes, url: str) -> list[sampling_pb2.SampleEvent]:
    try:
        return [sampling_pb2.SampleEvent.FromString(data) for data in unframer.push(chunk)]
    except (DecodeError, ValueError) as error:
        raise ServerError(f"{url} answered with a malformed stream") from error


def error_message(response: httpx.Response) -> common_pb2.Error | None:
    """What a Farstep server said; None where something in between answered."""
    if paths.PROTOBUF not in response.headers.get("content-type", ""):
        return None
    try:
        message = common_pb2.Error.FromString(response.content)
    except DecodeError:
        return None
    message.status = response.status_code
    return message


def refusal(response: httpx.Response, message: common_pb2.Error | None, url: str) -> FarstepError:
    if message is not None:
        return error_from_refusal(message)
    text = f"{url} answered with HTTP {response.status_code}"
    if response.status_code in (502, 503, 504):
        return TransportError(text)
    retry_after_s = retry_after_of(response, None) or None
    return error_from_refusal(common_pb2.Error(status=response.status_code, message=text, retry_after_s=retry_after_s))


def retry_after_of(response: httpx.Response, message: common_pb2.Error | None) -> float:
    if message is not None and message.HasField("retry_after_s"):
        return message.retry_after_s
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


def is_foreign(response: httpx.Response, message: common_pb2.Error | None) -> bool:
    """Whether something in between answered in the server's place, which may be gone in a moment."""
    return message is None and (response.is_redirect or response.status_code >= 500)
