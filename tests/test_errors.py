"""Errors keep their numbers and survive the wire."""

from __future__ import annotations

import shared.errors as errors
from shared.errors import InternalError, OverloadedError, SutureError, error_from_code

CODES = {
    "SutureError": 1, "ConfigError": 2, "StartupError": 3, "CaptureError": 10, "BundleError": 11,
    "UnknownModelError": 12, "InputMismatchError": 13, "DigestMismatchError": 14, "PlanError": 15,
    "ProtocolError": 20, "LimitError": 21, "VersionError": 22, "CodecError": 23, "RefusedError": 30,
    "OverloadedError": 31, "UnavailableError": 32, "DeadlineError": 33, "AuthError": 34,
    "InternalError": 40,
}  # fmt: skip


def test_codes_are_stable_and_unique() -> None:
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, SutureError)
    ]
    assert {cls.__name__: cls.code for cls in classes} == CODES


def test_every_error_comes_back_as_itself() -> None:
    for name, code in CODES.items():
        rebuilt = error_from_code(code, "why")
        assert type(rebuilt).__name__ == name
        assert str(rebuilt) == "why"


def test_a_refusal_keeps_its_retry_after() -> None:
    rebuilt = error_from_code(OverloadedError.code, "full", retry_after_ms=12.5)
    assert isinstance(rebuilt, OverloadedError)
    assert rebuilt.retry_after_ms == 12.5
    assert rebuilt.retryable


def test_an_unknown_code_is_an_internal_error() -> None:
    assert isinstance(error_from_code(999, "?"), InternalError)
