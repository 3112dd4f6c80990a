"""What a process of the fleet has written: plain text, for operators alone, since it tells of everybody's runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from farstep_infra.control.fleet import Fleet
from farstep_infra.launchers.logs import MAX_TAIL_LINES
from farstep_proto.errors import Forbidden, InvalidInput
from farstep_serving.keys import caller_of

DEFAULT_TAIL_LINES = 100
_MEDIA_TYPE = "text/plain; charset=utf-8"


async def process_log(request: Request, fleet: Fleet, *, is_ending: Callable[[], bool]) -> Response:
    """`?tail=N&follow=true`: its last lines, and, until the client goes away or the server ends, what comes.

    Raises:
        Forbidden: the key is not an operator's.
        NotFound: there is no such process.
        InvalidInput: naming the parameter.
    """
    if not caller_of(request).is_operator:
        raise Forbidden("only operators may read logs", hint="use an operator's key")
    num_lines = _num_lines(request.query_params.get("tail"))
    log = fleet.log(request.path_params["name"])
    if not _flag(request.query_params.get("follow"), field="follow"):
        return Response(await log.tail(num_lines), media_type=_MEDIA_TYPE)

    async def until_nobody_listens() -> AsyncIterator[bytes]:
        async for data in log.follow(num_lines):
            if is_ending() or await request.is_disconnected():
                return
            if data:
                yield data

    return StreamingResponse(until_nobody_listens(), media_type=_MEDIA_TYPE)


def _num_lines(text: str | None) -> int:
    if text is None:
        return DEFAULT_TAIL_LINES
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) <= MAX_TAIL_LINES):
        raise InvalidInput(f"{text[:40]!r} is not a number of lines up to {MAX_TAIL_LINES}", field="tail")
    return int(text)


def _flag(text: str | None, *, field: str) -> bool:
    match text:
        case None | "" | "0" | "false":
            return False
        case "1" | "true":
            return True
    raise InvalidInput(f"{text[:40]!r} is neither true nor false", field=field)
