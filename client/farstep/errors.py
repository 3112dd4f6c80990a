"""Everything that the SDK raises of its own, named by what the caller can do about it.

FarstepError
├── InvalidInputError      (ValueError)    an argument is wrong; `field` says which
├── AuthenticationError                    no key, or a wrong one
├── PermissionDeniedError                  the key does not allow this
├── NotFoundError                          no such run, checkpoint, operation or route
├── ConflictError                          the same name or seq with different content
├── PayloadTooLargeError                   over a limit that the message names
├── RateLimitError                         come back after `retry_after_s`
├── ServerShutdownError                    the server is draining
├── TransportError                         the server cannot be reached; whether a submission arrived is unknown
├── StorageFullError                       the server's disk is full: nothing was harmed, and nothing was taken
├── ServerError                            the server made a mistake, or it is no Farstep server
├── ProvisioningError                      a trainer or sampler could not be started
├── PublishTimeoutError    (RuntimeError)  published, but no sampler serves the policy yet
├── ResultTimeout          (TimeoutError)  the wait is over, the operation is not: ask again
├── UnknownRequestError                    the server no longer knows the operation
├── ClientClosedError      (RuntimeError)  the client was closed
├── MissingExtraError      (ImportError)   an optional package is not installed
└── RemoteOpError                          the operation itself failed; `error_class` says how
    └── PolicyNotReadyError                the gate: no replica serves that policy version yet

No error holds a key. Every error can be pickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import common_pb2


class FarstepError(Exception):
    """The root. `message` says what happened, `hint` what to do, `field` which argument is meant."""

    def __init__(self, message: str = "", *, hint: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field

    def __str__(self) -> str:
        text = f"{self.field}: {self.message}" if self.field else self.message
        return f"{text} ({self.hint})" if self.hint else text


class InvalidInputError(FarstepError, ValueError):
    pass


class AuthenticationError(FarstepError):
    pass


class PermissionDeniedError(FarstepError):
    pass


class NotFoundError(FarstepError):
    pass


class ConflictError(FarstepError):
    pass


class PayloadTooLargeError(FarstepError):
    pass


class RateLimitError(FarstepError):
    def __init__(
        self, message: str = "", *, hint: str = "", field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint, field=field)
        self.retry_after_s = retry_after_s


class ServerShutdownError(FarstepError):
    pass


class TransportError(FarstepError):
    pass


class StorageFullError(FarstepError):
    pass


class ServerError(FarstepError):
    pass


class ProvisioningError(FarstepError):
    pass


class PublishTimeoutError(FarstepError, RuntimeError):
    pass


class ResultTimeout(FarstepError, TimeoutError):
    pass


class UnknownRequestError(FarstepError):
    pass


class ClientClosedError(FarstepError, RuntimeError):
    pass


class MissingExtraError(FarstepError, ImportError):
    pass


class RemoteOpError(FarstepError):
    """A failed operation. `error_class` is the name of the exception that was raised on the server."""

    def __init__(
        self,
        message: str = "",
        *,
        hint: str = "",
        field: str = "",
        error_class: str = "",
        operation_id: str = "",
    ) -> None:
        super().__init__(message, hint=hint, field=field)
        self.error_class = error_class
        self.operation_id = operation_id

    def __str__(self) -> str:
        where = f" [operation {self.operation_id}]" if self.operation_id else ""
        return f"{self.error_class}: {super().__str__()}{where}"


class PolicyNotReadyError(RemoteOpError):
    """No replica serves the `wanted_version` yet; the newest there is is `newest_version`."""

    wanted_version: int | None = None
    newest_version: int | None = None
    retry_after_s: float | None = None


_REFUSALS: dict[int, type[FarstepError]] = {
    400: InvalidInputError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: PayloadTooLargeError,
    503: ServerShutdownError,
    507: StorageFullError,
}


def error_from_refusal(error: common_pb2.Error) -> FarstepError:
    """What a request raises that a server refused with this message."""
    if error.status == 429:
        return RateLimitError(error.message, hint=error.hint, field=error.field, retry_after_s=_retry_after_s(error))
    if error.status in (422, 425):
        return error_from_outcome(error, operation_id="")
    kind = _REFUSALS.get(error.status, ServerError)
    return kind(error.message, hint=error.hint, field=error.field)


def error_from_outcome(error: common_pb2.Error, *, operation_id: str) -> FarstepError:
    """What `Future.result()` raises for an operation that failed with this message."""
    if error.status == 503:
        return ServerShutdownError(error.message, hint=error.hint, field=error.field)
    kind = PolicyNotReadyError if error.status == 425 else RemoteOpError
    raised = kind(
        error.message,
        hint=error.hint,
        field=error.field,
        error_class=error.error_class,
        operation_id=operation_id,
    )
    if isinstance(raised, PolicyNotReadyError):
        raised.wanted_version = error.wanted_version if error.HasField("wanted_version") else None
        raised.newest_version = error.newest_version if error.HasField("newest_version") else None
        raised.retry_after_s = _retry_after_s(error)
    return raised


@contextmanager
def checked() -> Iterator[None]:
    """Translates the contract's refusals of what is in this block to ours."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInputError(error.message, hint=error.hint, field=error.field) from error


def _retry_after_s(error: common_pb2.Error) -> float | None:
    return error.retry_after_s if error.HasField("retry_after_s") else None
