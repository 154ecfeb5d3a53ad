"""An event loop whose time passes by waiting, and by a microsecond for every turn.

A turn has to take some time: where something is ready for ever, as a timer that is due a rounding error from
now, time would stand still otherwise, which no real clock does.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["TURN_MS", "VirtualLoop", "in_virtual_time"]

T = TypeVar("T")

TURN_MS = 0.001


class _Jumping(selectors.SelectSelector):
    clock_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits for something that will never happen")
        self.clock_s += TURN_MS / 1000.0
        if not ready and timeout is not None:
            self.clock_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.clock_s

    def spend(self, ms: float) -> None:
        """The callback that calls this occupies the loop for so long."""
        self._jumping.clock_s += ms / 1000.0


def in_virtual_time(body: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function to its end on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(body())
