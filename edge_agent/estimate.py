"""What the link is like now, from what passes over it.  Pure: time is an argument, in ms.

Uplink rates come from the gateway's arrival spans; round trips from pings.  A jump must be believed at
once and noise must not move anything, so both are followed by a :class:`Tracker`: a slow average that
gives way as soon as a few samples in a row agree on something else.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

__all__ = ["MIN_SPAN_BYTES", "LinkEstimate", "LinkEstimator", "Tracker"]

MIN_SPAN_BYTES = 10_000
"""Spans of smaller payloads measure the bursts of the network's queues, not its rate."""

_GAIN = 0.12
_JUMP = 0.3  # in log; three samples of +-20% noise hardly ever agree on being this far off
_LEAP = 0.5  # in log; two samples suffice for a jump beyond this
_AGREE = 0.4  # in log; how near to each other the two must be
_UNKNOWN_SPREAD = 1.0
_SPREAD_AGE_MS = 10_000.0
_FASTEST_BPS, _SLOWEST_BPS = 1e12, 1e2
_LEAST_RTT_MS, _MOST_RTT_MS = 1e-3, 1e6


class Tracker:
    """Follows a positive quantity in log space.

    Within its noise it averages (the first samples equally, later ones with a small weight).  When the
    median of the last three samples is more than a third away, or the last two are both far away on one
    side and agree, it moves there at once.  ``low`` and ``high`` clip the samples.
    """

    def __init__(self, prior: float, low: float, high: float) -> None:
        self._low, self._high = math.log(low), math.log(high)
        self._log = self._clip(prior)
        self._recent: deque[float] = deque(maxlen=3)
        self._spread = _UNKNOWN_SPREAD
        self.samples = 0
        """Samples that the value rests on; 0 while it is a prior."""

    @property
    def value(self) -> float:
        return math.exp(self._log)

    @property
    def spread(self) -> float:
        """Mean deviation of the samples from the value, as a share of it; 1 while nothing is known."""
        return self._spread

    def add(self, sample: float) -> None:
        """``sample`` must be positive and finite."""
        log = self._clip(sample)
        self._recent.append(log)
        deviation = log - self._log
        jump = self._jump()
        if self.samples == 0:
            self._log = log
        elif jump is not None:
            self._log = jump
            self.samples = 1
        else:
            step = max(1.0 / (self.samples + 1), _GAIN)
            self._log += step * max(-_JUMP, min(_JUMP, deviation))
            self._spread += step * (min(abs(deviation), _UNKNOWN_SPREAD) - self._spread)
        self.samples += 1

    def assume(self, value: float) -> None:
        """Move to a value that was inferred, not measured: the next sample replaces it."""
        self._log = self._clip(value)
        self.forget()

    def forget(self) -> None:
        """Keep the value as a prior only: the next sample replaces it."""
        self._recent.clear()
        self._spread = _UNKNOWN_SPREAD
        self.samples = 0

    def _jump(self) -> float | None:
        recent = [log - self._log for log in self._recent]
        if len(recent) == 3 and abs(median(recent)) > _JUMP:
            return self._log + median(recent)
        if len(recent) >= 2:
            last = recent[-2:]
            if (min(last) > _LEAP or max(last) < -_LEAP) and abs(last[0] - last[1]) < _AGREE:
                return self._log + sum(last) / 2
        return None

    def _clip(self, value: float) -> float:
        if not value > 0 or math.isinf(value):
            raise ValueError(f"a tracked quantity must be positive and finite, not {value}")
        return max(self._low, min(self._high, math.log(value)))


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """The link as estimated at one time.

    Only large results measure the downlink: until the next one it is taken to move as the uplink moves.
    Ages are those of the newest sample, ``inf`` before the first; spreads are shares of the value that
    grow with the age.  ``measured`` is false while the uplink is an assumption; ``bounded`` is true when
    it is an upper bound inferred from a payload that did not get through in time.
    """

    uplink_bps: float
    uplink_age_ms: float
    uplink_spread: float
    downlink_bps: float
    rtt_ms: float
    rtt_age_ms: float
    rtt_spread: float
    measured: bool
    bounded: bool


class LinkEstimator:
    """Rates and round trip of one link."""

    def __init__(self, assumed_uplink_bps: float, assumed_rtt_ms: float) -> None:
        self._uplink = Tracker(assumed_uplink_bps, _SLOWEST_BPS, _FASTEST_BPS)
        self._downlink = Tracker(assumed_uplink_bps, _SLOWEST_BPS, _FASTEST_BPS)
        self._rtt = Tracker(max(assumed_rtt_ms, _LEAST_RTT_MS), _LEAST_RTT_MS, _MOST_RTT_MS)
        self._uplink_ms = self._rtt_ms = -math.inf
        self._measured = self._downlink_measured = self._bounded = False
        self._uplink_at_download = self._uplink.value

    @property
    def uplink_bps(self) -> float:
        return self._uplink.value

    @property
    def measured(self) -> bool:
        """Whether the uplink rests on samples of this connection, and not on an assumption."""
        return self._uplink.samples > 0

    def on_span(self, span_bytes: int, span_ms: float, now_ms: float) -> bool:
        """A payload's size and the span in which it arrived.  Returns whether it says anything: spans of
        less than ``MIN_SPAN_BYTES``, and spans of 0 ms, do not."""
        if span_bytes < MIN_SPAN_BYTES or not span_ms > 0:
            return False
        self._uplink.add(span_bytes * 8000.0 / span_ms)
        self._uplink_ms = now_ms
        self._measured, self._bounded = True, False
        return True

    def on_stalled(self, sent_bytes: int, elapsed_ms: float) -> bool:
        """A payload was not through after ``elapsed_ms``: the uplink is at most that fast.

        Returns whether this lowered the estimate.  The next real sample replaces the bound at once.
        """
        if sent_bytes < MIN_SPAN_BYTES or not elapsed_ms > 0:
            return False
        bound = sent_bytes * 8000.0 / elapsed_ms
        if bound >= self._uplink.value:
            return False
        self._uplink.assume(bound)
        self._bounded = True
        return True

    def on_download(self, received_bytes: int, elapsed_ms: float) -> bool:
        """A result's size and the time its bytes took on the way back.  Returns whether it says anything."""
        if received_bytes < MIN_SPAN_BYTES or not elapsed_ms > 0:
            return False
        self._downlink.add(received_bytes * 8000.0 / elapsed_ms)
        self._uplink_at_download = self._uplink.value
        self._downlink_measured = True
        return True

    def on_rtt(self, rtt_ms: float, now_ms: float) -> None:
        """The round trip of a ping that waited behind no payload of ours."""
        self._rtt.add(max(rtt_ms, _LEAST_RTT_MS))
        self._rtt_ms = now_ms

    def on_reconnected(self) -> None:
        """Another path may lead to the cloud now: what was measured becomes a prior."""
        for tracker in (self._uplink, self._downlink, self._rtt):
            tracker.forget()
        self._bounded = False

    def estimate(self, now_ms: float) -> LinkEstimate:
        uplink_age, rtt_age = now_ms - self._uplink_ms, now_ms - self._rtt_ms
        uplink = self._uplink.value
        downlink = self._downlink.value * uplink / self._uplink_at_download
        return LinkEstimate(
            uplink_bps=uplink,
            uplink_age_ms=uplink_age,
            uplink_spread=self._uplink.spread + uplink_age / _SPREAD_AGE_MS,
            downlink_bps=downlink if self._downlink_measured else uplink,
            rtt_ms=self._rtt.value,
            rtt_age_ms=rtt_age,
            rtt_spread=self._rtt.spread + rtt_age / _SPREAD_AGE_MS,
            measured=self._measured,
            bounded=self._bounded,
        )
