"""The next deadline among the requests that wait."""

from __future__ import annotations

import heapq
import math

from cloud_cluster.work import Request

__all__ = ["Deadlines"]

_SLACK = 64


class Deadlines:
    """A heap; a request that has left its queue is thrown out when it comes to the top."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []

    def add(self, request: Request, waiting_at_most: int) -> None:
        """Note a request that waits.  Its deadline may be infinite.

        ``waiting_at_most`` bounds how many wait now: what has left must not pile up behind one that stays.
        """
        if math.isinf(request.deadline_ms):
            return
        heapq.heappush(self._heap, (request.deadline_ms, request.id, request))
        if len(self._heap) > 2 * waiting_at_most + _SLACK:
            self._heap = [entry for entry in self._heap if entry[2].queued]
            heapq.heapify(self._heap)

    def next_ms(self) -> float:
        """Infinite when nothing that waits has a deadline."""
        while self._heap and not self._heap[0][2].queued:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def pop_due(self, now_ms: float) -> Request | None:
        """A waiting request whose deadline has come; None when there is none."""
        if self.next_ms() > now_ms:
            return None
        return heapq.heappop(self._heap)[2]
