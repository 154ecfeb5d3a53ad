"""What a device may have at the gateway at once, and whether a request can still be answered in time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.errors import OverloadedError, RefusedError

__all__ = ["DeviceLimits", "Holdings", "too_late"]

_SOONEST_RETRY_MS = 1.0


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """Of one account; ``weight`` is its share of a queue that others wait in as well, 1 being usual.

    Raises ValueError for a weight that is not positive.
    """

    max_in_flight: int
    max_in_flight_bytes: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"a weight is a positive number, not {self.weight}")


@dataclass(slots=True)
class Holdings:
    """What one account has at the gateway and at the replicas."""

    requests: int = 0
    nbytes: int = 0

    def refusal(self, nbytes: int, limits: DeviceLimits, retry_ms: float) -> OverloadedError | None:
        """Why one more request of so many bytes is too much; None when it is not."""
        retry_ms = max(retry_ms, _SOONEST_RETRY_MS)
        if self.requests >= limits.max_in_flight:
            return OverloadedError(
                f"this device has {self.requests} requests in flight, the most it may have", retry_ms
            )
        if self.nbytes + nbytes > limits.max_in_flight_bytes:
            return OverloadedError(
                f"this device would have more than {limits.max_in_flight_bytes} bytes in flight", retry_ms
            )
        return None


def too_late(wait_ms: float, compute_ms: float, left_ms: float) -> RefusedError | None:
    """Why a request that would wait and then compute so long is not taken; None when it ends in time.

    The time to try again is when the wait will have become short enough.  A request that would be late
    without any wait is refused without one.
    """
    late_ms = wait_ms + compute_ms - left_ms
    if late_ms <= 0:
        return None
    if compute_ms > left_ms:
        return RefusedError(
            f"{left_ms:.0f} ms are left, and the computation alone takes {compute_ms:.0f} ms at present; "
            "give it more time or a later cut"
        )
    return OverloadedError(
        f"{left_ms:.0f} ms are left, and it would wait {wait_ms:.0f} ms and then compute {compute_ms:.0f} ms",
        max(late_ms, _SOONEST_RETRY_MS),
    )
