"""What the cloud says of one network's load, and for how long that is worth something.  Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_agent.load_merge import MergedLoad
    from shared.wire.messages import ModelLoad

__all__ = ["ReportedLoad"]

_UNKNOWN_WAIT_MS = 25.0
"""What a request is taken to wait while no fresh load report says otherwise: not nothing."""

_MEMORY_MS, _STANDS_FOR_MS = 500.0, 100.0
_JITTER_WEIGHT = 0.2
_UNUSUAL, _UNUSUAL_MS = 2.0, 5.0
"""Beyond so many times the usual step from report to report, and so many ms, a report is news."""

_LEAST_SLOWDOWN, _MOST_SLOWDOWN = 0.1, 100.0


class ReportedLoad:
    """The newest report, and the work of our own that it still counts although it is done.

    A queue moves faster than it is reported, and by the time that a request reaches it the newest report
    is one sample of many: reports that differ no more than they always do are averaged over half a second.
    One that differs more than usual is believed at once.
    """

    def __init__(self) -> None:
        self.load: ModelLoad | None = None
        self.said_ms = -math.inf
        self.fresh_until_ms = -math.inf
        self._own_done_ms = 0.0
        self._average_ms: float | None = None
        self._jitter_ms = 0.0

    def on_load(self, merged: MergedLoad) -> None:
        if self.load is not None and merged.said_ms > self.said_ms:
            newest_ms = self._newest_ms()
            self._average_ms = self._smoothed_ms(newest_ms, merged.said_ms - self.said_ms)
            step_ms = abs(merged.load.wait_ms - newest_ms)
            self._jitter_ms += _JITTER_WEIGHT * (step_ms - self._jitter_ms)
        if merged.said_ms != self.said_ms:
            self._own_done_ms = 0.0
        self.load, self.said_ms, self.fresh_until_ms = merged

    def on_answered(self, latency_ms: float, cloud_ms: float, now_ms: float) -> None:
        """An answer came back: work of our own that a report made on its way still counts is done."""
        if now_ms - latency_ms < self.said_ms:
            self._own_done_ms += cloud_ms

    def is_fresh(self, now_ms: float) -> bool:
        return now_ms < self.fresh_until_ms

    def wait_ms(self, fresh: bool) -> float:
        """The wait as reported of late; when that is stale, at least what is assumed of an unknown queue."""
        reported = 0.0 if self.load is None else self._smoothed_ms(self._newest_ms(), _STANDS_FOR_MS)
        return reported if fresh else max(reported, _UNKNOWN_WAIT_MS)

    def _newest_ms(self) -> float:
        assert self.load is not None
        return max(0.0, self.load.wait_ms - self._own_done_ms / self.replicas)

    def _smoothed_ms(self, newest_ms: float, held_ms: float) -> float:
        """The average with the newest report in it, which has held for this long."""
        if self._average_ms is None:
            return newest_ms
        apart_ms = newest_ms - self._average_ms
        if abs(apart_ms) > _UNUSUAL * self._jitter_ms + _UNUSUAL_MS:
            return newest_ms
        return self._average_ms + apart_ms * -math.expm1(-held_ms / _MEMORY_MS)

    def slowdown(self, fresh: bool) -> float:
        """Within bounds; when it is stale, at least 1."""
        slowdown = 1.0 if self.load is None else self.load.slowdown
        if not fresh:
            slowdown = max(1.0, slowdown)
        return min(max(slowdown, _LEAST_SLOWDOWN), _MOST_SLOWDOWN)

    @property
    def replicas(self) -> int:
        """At least one."""
        return 1 if self.load is None else max(1, self.load.ready)
