"""What an SDK is told to do by the server: the levers of `client/config`, set for servers that are near.

Chunks are large, since a call that travels whole is one operation and one outcome; they may come in parallel, since the
trainer puts them in order. Bodies are not compressed by default: on a short line that only costs time.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control.control import control_of
from farstep_infra.gateway.auth import auth_of
from farstep_infra.gateway.bodies import Body, answer, media, read_json
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_serving.descriptions import describe

MAX_CHUNK_BYTES = 16_000_000  # as the SDK estimates them; what it sends is a little more
MAX_CHUNK_LEN = 4096


class ConfigRequest(Body):
    sdk_version: str = ""


class ClientConfig(Body):
    pjwt_auth_enabled: bool = False
    parallel_fwdbwd_chunks: bool = True
    proto_compress_fwdbwd: bool = False
    fwdbwd_max_chunk_len: int = MAX_CHUNK_LEN
    fwdbwd_max_chunk_bytes_count: int = MAX_CHUNK_BYTES
    fwdbwd_dispatch_bytes_semaphore_size: int = 4 * MAX_CHUNK_BYTES
    inflight_response_bytes_semaphore_size: int = 256 << 20
    sample_use_retrieve_futures: bool = False
    sample_join_sampling_session: bool = True
    custom_loss_server_side: bool = False


class DynamicConfig(Body):
    refresh_interval_sec: int = 300
    sample_cancel_enabled: bool = True
    sample_cancel_max_batch_size: int = 64


@describe(
    "Tell a Tinker client how to behave", takes=media(ConfigRequest), gives=media(ClientConfig), error=media(ErrorBody)
)
async def _config(request: Request) -> Response:
    await read_json(request, ConfigRequest)
    config = ClientConfig(
        pjwt_auth_enabled=auth_of(request).asks_for_tokens,
        custom_loss_server_side=control_of(request).custom_losses,
    )
    return answer(config)


@describe(
    "Tell a Tinker client again how to behave",
    takes=media(ConfigRequest),
    gives=media(DynamicConfig),
    error=media(ErrorBody),
)
async def _dynamic_config(request: Request) -> Response:
    await read_json(request, ConfigRequest)
    return answer(DynamicConfig())


ROUTES = [
    Route(f"{PREFIX}client/config", _config, methods=["POST"]),
    Route(f"{PREFIX}client/dynamic_config", _dynamic_config, methods=["POST"]),
]
