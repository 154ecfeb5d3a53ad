"""When to measure the uplink actively: only where traffic is too thin, and within a budget of bytes."""

from __future__ import annotations

import math

from edge_agent.estimate import MIN_SPAN_BYTES

__all__ = ["ProbeBudget"]

_SHARE = 0.01
_SAVED_PROBES = 6
_LEAST_BYTES = 12_288
_SPAN_MS = 20.0
_LEAST_BYTES_PER_MS = 0.5
"""The budget of a link that is nearly dead, so that its return is noticed within half a minute."""


class ProbeBudget:
    """A probe is due once the last sample is older than the interval and its bytes have been saved up.

    The allowance grows by 1% of the estimated uplink and holds six probes, so that a plan that just went
    all-local is looked after closely at first.  A probe is sized to take about 20 ms, between 12 kB (less
    measures nothing) and ``largest_bytes``, which turns probes off when it is below what a span needs.
    """

    def __init__(self, largest_bytes: int, interval_ms: float) -> None:
        self._largest = largest_bytes
        self._interval_ms = interval_ms
        self._allowance = float(_SAVED_PROBES * largest_bytes)
        self._accrued_ms: float | None = None
        self._sample_ms = self._sent_ms = -math.inf

    def on_sample(self, now_ms: float) -> None:
        """The uplink was measured, by a probe or by traffic."""
        self._sample_ms = now_ms

    def on_doubt(self) -> None:
        """What is believed of the uplink is not measured any more: a probe is due at once."""
        self._sample_ms = -math.inf

    def on_sent(self, probe_bytes: int, now_ms: float) -> None:
        self._sent_ms = now_ms
        self._allowance -= probe_bytes

    def due_bytes(self, uplink_bps: float, now_ms: float) -> int:
        """The size of the probe to send now; 0 when none is due."""
        if self._largest < MIN_SPAN_BYTES:
            return 0
        bytes_per_ms = uplink_bps / 8000.0
        if self._accrued_ms is not None:
            earned = max(_SHARE * bytes_per_ms, _LEAST_BYTES_PER_MS) * max(0.0, now_ms - self._accrued_ms)
            self._allowance = min(self._allowance + earned, float(_SAVED_PROBES * self._largest))
        self._accrued_ms = now_ms
        if now_ms - max(self._sample_ms, self._sent_ms) < self._interval_ms:
            return 0
        size = min(self._largest, max(_LEAST_BYTES, int(bytes_per_ms * _SPAN_MS)))
        return size if self._allowance >= size else 0
