"""The long-lived loops of a gateway or a replica, as one thing that runs and can be stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

__all__ = ["Loops"]


class Loops:
    """:meth:`run` until :meth:`stop`, once."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self, loops: Mapping[str, Coroutine[Any, Any, None]]) -> None:
        """Run the loops, by name, until stopped or cancelled.

        A defect in one of them ends all and leaves as an exception group.
        """
        self._ended.clear()
        try:
            async with asyncio.TaskGroup() as self._group:
                for name, loop in loops.items():
                    self.add(name, loop)
                await self._stopping.wait()
                for name in list(self._tasks):
                    self.remove(name)
        finally:
            self._group = None
            self._ended.set()

    def add(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        """One more loop, while :meth:`run` runs."""
        if self._group is None:
            loop.close()
            raise RuntimeError(f"no loops run that {name} could join")
        self._tasks[name] = self._group.create_task(loop, name=name)

    def remove(self, name: str) -> None:
        """End one of the loops; unknown names are ignored."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    @property
    def running(self) -> bool:
        return self._group is not None

    async def stop(self) -> None:
        """Return when no loop runs any more."""
        self._stopping.set()
        await self._ended.wait()
