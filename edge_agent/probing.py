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

_HINT_BYTES = 3072
_BURST_BYTES = 1500
"""What a link that has rested lets through at once, at the least: it says nothing of the rate."""

_SURPRISE = 2.0
_FOLLOW_UPS = 3
_FOLLOW_UP_MS = 100.0


class ProbeBudget:
    """A probe is due once the last sample is older than the interval and its bytes have been saved up.

    The allowance grows by 1% of the estimated uplink and holds six probes, so that a plan that just went
    all-local is looked after closely at first.  A probe is sized to take about 20 ms, between 12 kB (less
    measures nothing) and ``largest_bytes``, which turns probes off when it is below what a span needs.

    On a slow link the bytes of a probe take most of a minute to save.  Meanwhile hints of 3 kB are sent:
    too small to measure by, but one that arrives in less than half of the time that the estimate allows is
    followed by up to three probes on credit, and so is a sample that is far from the estimate.  What was
    lent is paid off before anything else is sent.
    """

    def __init__(self, largest_bytes: int, interval_ms: float) -> None:
        self._largest = largest_bytes
        self._interval_ms = interval_ms
        self._allowance = float(_SAVED_PROBES * largest_bytes)
        self._accrued_ms: float | None = None
        self._sample_ms = self._sent_ms = -math.inf
        self._follow_ups = 0
        self._in_doubt = False
        self._seen_bps = 0.0

    def on_sample(self, sample_bps: float, uplink_bps: float, now_ms: float) -> None:
        """The uplink was measured, by a probe or by traffic; ``uplink_bps`` is what was believed before."""
        self._sample_ms = now_ms
        if 1 / _SURPRISE < sample_bps / uplink_bps < _SURPRISE:
            self._follow_ups, self._in_doubt = 0, False
        else:
            self._doubt(sample_bps)

    def on_hint(self, span_bytes: int, span_ms: float, uplink_bps: float) -> None:
        """So few bytes arrived in this span that they measure nothing, but may be a surprise."""
        paced_bytes = span_bytes - _BURST_BYTES
        if paced_bytes > 0 and span_ms * _SURPRISE < paced_bytes * 8000.0 / uplink_bps:
            self._doubt(span_bytes * 8000.0 / max(span_ms, 1e-3))

    def on_doubt(self) -> None:
        """What is believed of the uplink is not measured any more: a probe is due at once."""
        self._sample_ms = -math.inf

    def on_sent(self, probe_bytes: int, now_ms: float) -> None:
        self._sent_ms = now_ms
        self._allowance -= probe_bytes
        if probe_bytes > _HINT_BYTES:
            self._follow_ups = max(self._follow_ups - 1, 0)

    def due_bytes(self, uplink_bps: float, now_ms: float) -> int:
        """The size of the probe to send now; 0 when none is due."""
        if self._largest < MIN_SPAN_BYTES:
            return 0
        bytes_per_ms = uplink_bps / 8000.0
        if self._accrued_ms is not None:
            earned = max(_SHARE * bytes_per_ms, _LEAST_BYTES_PER_MS) * max(0.0, now_ms - self._accrued_ms)
            self._allowance = min(self._allowance + earned, float(_SAVED_PROBES * self._largest))
        self._accrued_ms = now_ms
        if self._follow_ups:
            return self._size(self._seen_bps) if now_ms - self._sent_ms >= _FOLLOW_UP_MS else 0
        if now_ms - max(self._sample_ms, self._sent_ms) < self._interval_ms:
            return 0
        size = self._size(uplink_bps)
        if self._allowance >= size:
            return size
        return _HINT_BYTES if self._allowance >= _HINT_BYTES else 0

    def _size(self, rate_bps: float) -> int:
        return min(self._largest, max(_LEAST_BYTES, int(rate_bps / 8000.0 * _SPAN_MS)))

    def _doubt(self, seen_bps: float) -> None:
        self._seen_bps = seen_bps
        if not self._in_doubt:
            # Once until a sample agrees again: an estimate that keeps being surprised costs no more.
            self._in_doubt, self._follow_ups = True, _FOLLOW_UPS
