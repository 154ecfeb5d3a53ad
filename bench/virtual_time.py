"""Virtual time: events in order of their moment, equals in the order in which they were asked for."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

__all__ = ["Timeline"]


class Timeline:
    """A discrete-event clock in ms.  Nothing waits: time jumps from event to event."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.events = 0
        """Events that have happened."""
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, moment_ms: float, event: Callable[..., None], *arguments: Any) -> None:
        """Call ``event`` at this moment; at once, after all that is due by now, when it has passed."""
        heapq.heappush(self._heap, (max(moment_ms, self.now_ms), next(self._order), event, arguments))

    def after(self, delay_ms: float, event: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now_ms + delay_ms, event, *arguments)

    def run(self, until_ms: float) -> None:
        """Let everything happen that is due before this moment, and stop the clock there."""
        heap = self._heap
        while heap and heap[0][0] < until_ms:
            self.now_ms, _, event, arguments = heapq.heappop(heap)
            self.events += 1
            event(*arguments)
        self.now_ms = until_ms
