"""One direction of a connection in virtual time: in order, at a rate, late at random, now and then dead."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

__all__ = ["Wire"]


class Wire:
    """As TCP: what is sent arrives whole and in order, or the connection ends before.

    ``lose`` of the messages are held up by a retransmission; while ``stalled`` nothing arrives, and all of it
    does afterwards; :meth:`cut` loses what is under way.
    """

    def __init__(self, draw: random.Random, *, bps: float, latency_ms: float, lose: float) -> None:
        self._draw = draw
        self._bps = bps
        self._latency_ms = latency_ms
        self._lose = lose
        self._loop = asyncio.get_running_loop()
        self._free_ms = self._last_ms = 0.0
        self._epoch = 0
        self._stalled = False
        self._held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def send(self, nbytes: int, arrive: Callable[..., None], *arguments: Any) -> None:
        """Call ``arrive`` with the arguments, and last the ms between its first byte and its last."""
        now_ms = self._loop.time() * 1000.0
        span_ms = nbytes * 8000.0 / self._bps
        self._free_ms = max(self._free_ms, now_ms) + span_ms
        late_ms = self._latency_ms * self._draw.expovariate(1.0)
        if self._draw.random() < self._lose:
            late_ms += self._draw.uniform(200.0, 400.0)
        self._last_ms = max(self._last_ms, self._free_ms + late_ms)
        self._loop.call_at(self._last_ms / 1000.0, self._arrive, self._epoch, arrive, (*arguments, span_ms))

    def stall(self) -> None:
        self._stalled = True

    def heal(self) -> None:
        self._stalled = False
        held, self._held = self._held, []
        for arrive, arguments in held:
            arrive(*arguments)

    def cut(self) -> None:
        self._epoch += 1
        self._held.clear()
        self._free_ms = self._last_ms = 0.0

    def _arrive(self, epoch: int, arrive: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if epoch != self._epoch:
            return
        if self._stalled:
            self._held.append((arrive, arguments))
        else:
            arrive(*arguments)
