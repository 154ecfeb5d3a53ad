"""Every error that Suture raises on purpose.

::

    SutureError
    ├── ConfigError            a file or argument that a person wrote           exit code 2
    ├── StartupError           a port in use, a device that is not there        exit code 3
    ├── CaptureError           a network that cannot be cut, and the line why
    ├── BundleError            a bundle directory that is damaged or not allowed
    ├── UnknownModelError      no such model at the agent or the gateway
    ├── InputMismatchError     wrong tree, shape or dtype of inputs
    ├── DigestMismatchError    device and cloud hold different networks under one name
    ├── PlanError              no candidate satisfies the constraints
    ├── ProtocolError          bytes that are not a valid message
    │   ├── LimitError         a message larger than the agreed limits
    │   └── VersionError       a protocol version that this side does not speak
    ├── CodecError             a payload that does not decode to what its card promises
    ├── RefusedError           the other side will not take the work now        may be retried
    │   └── OverloadedError    ... because its queue is full
    ├── UnavailableError       no agent, gateway or replica to talk to          may be retried
    ├── DeadlineError          the answer did not come in time                  may be retried
    ├── AuthError              a key or token that the other side does not know
    └── InternalError          a defect on the other side

``code`` is the stable number on the wire; numbers are never reused.  ``retryable`` says whether the
same call can succeed later without a change by the caller.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthError",
    "BundleError",
    "CaptureError",
    "CodecError",
    "ConfigError",
    "DeadlineError",
    "DigestMismatchError",
    "InputMismatchError",
    "InternalError",
    "LimitError",
    "OverloadedError",
    "PlanError",
    "ProtocolError",
    "RefusedError",
    "StartupError",
    "SutureError",
    "UnavailableError",
    "UnknownModelError",
    "VersionError",
    "error_from_code",
]


class SutureError(Exception):
    """Base of the tree.  The message names the next step for the person who reads it."""

    code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False


class ConfigError(SutureError):
    code = 2


class StartupError(SutureError):
    code = 3


class CaptureError(SutureError):
    code = 10


class BundleError(SutureError):
    code = 11


class UnknownModelError(SutureError):
    code = 12


class InputMismatchError(SutureError):
    code = 13


class DigestMismatchError(SutureError):
    code = 14


class PlanError(SutureError):
    code = 15


class ProtocolError(SutureError):
    code = 20


class LimitError(ProtocolError):
    code = 21


class VersionError(ProtocolError):
    """``supported`` is the first and last version spoken here, ``request_id`` that of the message or 0."""

    code = 22

    def __init__(self, message: str, supported: tuple[int, int] = (1, 1), request_id: int = 0) -> None:
        super().__init__(message)
        self.supported = supported
        self.request_id = request_id


class CodecError(SutureError):
    code = 23


class RefusedError(SutureError):
    """``retry_after_ms`` is the sender's estimate of when asking again makes sense; 0 when unknown."""

    code = 30
    retryable = True

    def __init__(self, message: str, retry_after_ms: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class OverloadedError(RefusedError):
    code = 31


class UnavailableError(SutureError):
    code = 32
    retryable = True


class DeadlineError(SutureError):
    code = 33
    retryable = True


class AuthError(SutureError):
    code = 34


class InternalError(SutureError):
    code = 40


def _subclasses(cls: type[SutureError]) -> list[type[SutureError]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in _subclasses(sub))]


_BY_CODE = {cls.code: cls for cls in _subclasses(SutureError)}


def error_from_code(code: int, message: str, retry_after_ms: float = 0.0) -> SutureError:
    """Rebuild the error that the other side reported; an unknown code becomes :class:`InternalError`."""
    cls = _BY_CODE.get(code, InternalError)
    if issubclass(cls, RefusedError):
        return cls(message, retry_after_ms)
    return cls(message)
