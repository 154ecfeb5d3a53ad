"""How busy and how slow a replica is."""

from __future__ import annotations

import math
import time

from cloud_cluster.replica_request import Done
from shared.errors import SutureError
from shared.wire.messages import Credit

__all__ = ["Pace"]

_SLOWDOWN_WEIGHT = 0.2
# Shorter computations say more about the scheduler than about the replica.
_SLOWDOWN_MIN_MS = 0.2
# What was slow then need not be slow now, and without requests nothing else would say so.
_SLOWDOWN_MEMORY_S = 5.0


class Pace:
    """How busy and how slow the replica is, between two reports."""

    def __init__(self) -> None:
        self._slowdown = 1.0
        self._busy_ms = 0.0
        self._since = time.monotonic()
        self.busy_total_ms = 0.0
        self.finished = 0

    def on_done(self, done: Done) -> None:
        self._busy_ms += done.busy_ms
        self.busy_total_ms += done.busy_ms
        self.finished += 1
        if isinstance(done.outcome, SutureError) or done.outcome.expected_ms < _SLOWDOWN_MIN_MS:
            return
        measured = done.outcome.compute_ms / done.outcome.expected_ms
        self._slowdown += _SLOWDOWN_WEIGHT * (measured - self._slowdown)

    @property
    def slowdown(self) -> float:
        return self._slowdown

    def take(self) -> Credit | None:
        """The report, or None when there is nothing new to say."""
        now = time.monotonic()
        elapsed_s, self._since = now - self._since, now
        busy_ms, self._busy_ms = self._busy_ms, 0.0
        if not busy_ms:
            if abs(self._slowdown - 1.0) < 0.01:
                return None
            self._slowdown += (1.0 - self._slowdown) * -math.expm1(-elapsed_s / _SLOWDOWN_MEMORY_S)
        busy = min(busy_ms / (elapsed_s * 1e3), 1.0) if elapsed_s > 0 else 0.0
        return Credit(credits=0, busy_fraction=busy, slowdown=self._slowdown)
