"""The error table: every error that crosses a process boundary, and its HTTP status.

ApiError                     what a server raises and a client receives
├── InvalidInput         400 the request is wrong; `field` says where
├── Unauthenticated      401 no key, or a wrong one
├── Forbidden            403 the key does not allow this
│   └── QuotaExceeded    403 the project has as much as it may have
├── NotFound             404 no such run, checkpoint, operation or route
├── BodyTimeout          408 the request's body did not come; nothing was taken
├── Conflict             409 the same name or seq with different content
├── PayloadTooLarge      413 over the limit that the message names
├── UnsupportedEncoding  415 the body is compressed
├── PolicyNotReady       425 the gate: no replica serves that version yet
├── TooManyRequests      429 come back after `retry_after_s`
├── Draining             503 the server is shutting down
├── Unavailable          503 something that the server needs is away for now; nothing was taken
├── StorageFull          507 the disk has no room for it; nothing was taken
└── Internal             500 our mistake
"""

from __future__ import annotations

from farstep_proto.v1 import common_pb2 as pb


class ApiError(Exception):
    """An error with a status, a class name, a message, and what to do about it."""

    status = 500
    error_class = "InternalError"
    default_hint = ""

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        hint: str = "",
        retry_after_s: float | None = None,
        wanted_version: int | None = None,
        newest_version: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint or self.default_hint
        self.retry_after_s = retry_after_s
        self.wanted_version = wanted_version
        self.newest_version = newest_version

    def to_proto(self) -> pb.Error:
        return pb.Error(
            error_class=self.error_class,
            message=self.message,
            hint=self.hint,
            field=self.field,
            status=self.status,
            retry_after_s=self.retry_after_s,
            wanted_version=self.wanted_version,
            newest_version=self.newest_version,
        )


class InvalidInput(ApiError):
    status = 400
    error_class = "ValidationError"


class Unauthenticated(ApiError):
    status = 401
    error_class = "AuthenticationError"
    default_hint = "pass api_key= or set FARSTEP_API_KEY to the key of this server"


class Forbidden(ApiError):
    status = 403
    error_class = "PermissionDeniedError"


class QuotaExceeded(Forbidden):
    error_class = "QuotaExceededError"


class NotFound(ApiError):
    status = 404
    error_class = "NotFoundError"


class BodyTimeout(ApiError):
    status = 408
    error_class = "BodyTimeoutError"


class Conflict(ApiError):
    status = 409
    error_class = "ConflictError"


class PayloadTooLarge(ApiError):
    status = 413
    error_class = "PayloadTooLargeError"


class UnsupportedEncoding(ApiError):
    status = 415
    error_class = "UnsupportedEncodingError"


class PolicyNotReady(ApiError):
    status = 425
    error_class = "PolicyNotReadyError"


class TooManyRequests(ApiError):
    status = 429
    error_class = "RateLimitError"


class Draining(ApiError):
    status = 503
    error_class = "ServerShutdownError"


class Unavailable(ApiError):
    status = 503
    error_class = "UnavailableError"


class StorageFull(ApiError):
    status = 507
    error_class = "StorageFullError"
    default_hint = "make room on the server's disk"


class Internal(ApiError):
    status = 500
    error_class = "InternalError"


class ModelError(ApiError):
    """The operation itself failed: `error_class` is the name of what was raised while it ran."""

    status = 422

    def __init__(self, message: str, *, error_class: str, hint: str = "", field: str = "") -> None:
        super().__init__(message, hint=hint, field=field)
        self.error_class = error_class


def error_from_exception(error: BaseException) -> pb.Error:
    """The message for a failed operation: our own errors as they are, any other by its class name."""
    if isinstance(error, ApiError):
        return error.to_proto()
    return ModelError(str(error) or repr(error), error_class=type(error).__name__).to_proto()
