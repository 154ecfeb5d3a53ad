"""What the cloud says of one network's load, and for how long that is worth something.  Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.wire.messages import ModelLoad

__all__ = ["ReportedLoad"]

_UNKNOWN_WAIT_MS = 25.0
"""What a request is taken to wait while no fresh load report says otherwise: not nothing."""

_LEAST_SLOWDOWN, _MOST_SLOWDOWN = 0.1, 100.0


class ReportedLoad:
    """The newest report, and the work of our own that it still counts although it is done."""

    def __init__(self) -> None:
        self.load: ModelLoad | None = None
        self.reported_ms = -math.inf
        self._own_done_ms = 0.0

    def on_load(self, load: ModelLoad, now_ms: float) -> None:
        self.load, self.reported_ms = load, now_ms
        self._own_done_ms = 0.0

    def on_answered(self, latency_ms: float, cloud_ms: float, now_ms: float) -> None:
        """An answer came back: work of our own that a report made on its way still counts is done."""
        if now_ms - latency_ms < self.reported_ms:
            self._own_done_ms += cloud_ms

    def is_fresh(self, stale_ms: float, now_ms: float) -> bool:
        return now_ms - self.reported_ms < stale_ms

    def wait_ms(self, fresh: bool) -> float:
        """The report's wait; when it is stale, at least what is assumed of an unknown queue."""
        load = self.load
        reported = 0.0 if load is None else max(0.0, load.wait_ms - self._own_done_ms / self.replicas)
        return reported if fresh else max(reported, _UNKNOWN_WAIT_MS)

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
