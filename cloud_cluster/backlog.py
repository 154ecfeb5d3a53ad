"""What a replica holds, how fast it gets through it, and when the queue in front of it will have drained.

Work is counted in milliseconds of an idle replica at batch 1, as profiled.  How long it takes is another
matter: other load makes it longer, computing several requests together makes it shorter.  So a replica's
pace, busy milliseconds per millisecond of work, is learned from its answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from cloud_cluster.work import Request

__all__ = ["Replica", "drained_ms"]

# The pace is that of about the last second of answers; with fewer than that many milliseconds of work
# the slowdown that the replica reports is the better guess.
_PACE_MEMORY_MS = 1000.0
_PACE_PRIOR_MS = 5.0
_LEAST_PACE = 1e-3
_BATCH_WEIGHT = 0.2
# A replica reports what it holds for other gateways with every heartbeat; from then on that drains.
_ELSEWHERE_HOLDS_MS = 200.0


@dataclass(slots=True)
class Replica:
    """One replica as this gateway sees it: its window, its pace, and what is there."""

    model: int
    window: int
    heard_ms: float
    slowdown: float = 1.0
    draining: bool = False
    in_flight: dict[int, Request] = field(default_factory=dict)
    work_ms: float = 0.0
    batch_requests: float = 1.0
    _progress_ms: float = -math.inf
    _elsewhere_ms: float = 0.0
    _elsewhere_at_ms: float = -math.inf
    _busy_ms: float = 0.0
    _done_ms: float = 0.0
    _paced_at_ms: float = -math.inf

    @property
    def is_ready(self) -> bool:
        return self.window > 0 and not self.draining

    @property
    def is_free(self) -> bool:
        return len(self.in_flight) < self.window and not self.draining

    def on_send(self, request: Request, now_ms: float) -> None:
        if not self.in_flight:
            self._progress_ms = now_ms
        self.in_flight[request.id] = request
        self.work_ms += request.work_ms

    def on_answer(
        self, request_id: int, busy_ms: float, batch_requests: int, now_ms: float
    ) -> Request | None:
        """Take back what it answers; None when it holds no such request.

        ``busy_ms`` is the request's share of the replica's time, 0 when unknown: nothing is learned then.
        """
        request = self.in_flight.pop(request_id, None)
        if request is None:
            return None
        # An empty replica holds zero, whatever the rounding of sums and differences says.
        self.work_ms = self.work_ms - request.work_ms if self.in_flight else 0.0
        self.heard_ms = self._progress_ms = now_ms
        if busy_ms > 0:
            fading = math.exp((self._paced_at_ms - now_ms) / _PACE_MEMORY_MS)
            self._busy_ms = self._busy_ms * fading + busy_ms
            self._done_ms = self._done_ms * fading + request.work_ms
            self._paced_at_ms = now_ms
            self.batch_requests += _BATCH_WEIGHT * (max(batch_requests, 1) - self.batch_requests)
        return request

    def on_credit(
        self, credits: int, slowdown: float, window: int | None, elsewhere_ms: float, now_ms: float
    ) -> None:
        self.window = self.window + credits if window is None else window
        self.slowdown = slowdown
        self._elsewhere_ms = elsewhere_ms
        self.heard_ms = self._elsewhere_at_ms = now_ms

    def pace(self, now_ms: float) -> float:
        """Busy milliseconds per millisecond of work."""
        fading = math.exp((self._paced_at_ms - now_ms) / _PACE_MEMORY_MS)
        busy_ms = self._busy_ms * fading + _PACE_PRIOR_MS * self.slowdown
        return max(busy_ms / (self._done_ms * fading + _PACE_PRIOR_MS), _LEAST_PACE)

    def elsewhere_ms(self, now_ms: float) -> float:
        """How long what it holds for other gateways will keep it busy."""
        if not self._elsewhere_ms:
            return 0.0
        drained_ms = max(now_ms - self._elsewhere_at_ms - _ELSEWHERE_HOLDS_MS, 0.0)
        return max(self._elsewhere_ms * self.pace(now_ms) - drained_ms, 0.0)

    def backlog_ms(self, now_ms: float) -> float:
        """How long all that it holds will keep it busy.

        Of the requests here only those that are computed together have made progress since the last answer.
        """
        if not self.in_flight:
            return self.elsewhere_ms(now_ms)
        own_ms = self.work_ms * self.pace(now_ms)
        together = min(self.batch_requests / len(self.in_flight), 1.0)
        progress_ms = min(now_ms - self._progress_ms, own_ms * together)
        return own_ms - progress_ms + self.elsewhere_ms(now_ms)

    def load(self, now_ms: float) -> tuple[float, int]:
        """To be compared with another replica's: requests of no work count as well."""
        return self.backlog_ms(now_ms), len(self.in_flight)

    def rate(self, now_ms: float) -> float:
        """Milliseconds of this gateway's work that it gets done in one millisecond."""
        elsewhere_ms = self.elsewhere_ms(now_ms)
        pace = self.pace(now_ms)
        own_ms = self.work_ms * pace
        # Whose work it takes next is decided by what it holds of each.
        share = own_ms / (own_ms + elsewhere_ms) if own_ms and elsewhere_ms else 1.0
        return share / pace


def drained_ms(work_ms: float, replicas: Iterable[Replica], now_ms: float) -> float:
    """When the first of the replicas is free for more, once they have shared this work among themselves.

    Each starts on it when it has done what it holds; infinite without replicas.
    """
    free_at = sorted((replica.backlog_ms(now_ms), replica.rate(now_ms)) for replica in replicas)
    level_ms, rate = math.inf, 0.0
    for backlog_ms, its_rate in free_at:
        if rate:
            filling_ms = (backlog_ms - level_ms) * rate
            if filling_ms >= work_ms:
                break
            work_ms -= filling_ms
        level_ms = backlog_ms
        rate += its_rate
    return level_ms + work_ms / rate if rate else math.inf
