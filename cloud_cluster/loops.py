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

    async def run(self, loops: Mapping[str, Coroutine[Any, Any, None]]) -> None:
        """Run the loops, by name, until stopped or cancelled.

        A defect in one of them ends all and leaves as an exception group.
        """
        self._ended.clear()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(loop, name=name) for name, loop in loops.items()]
                await self._stopping.wait()
                for task in tasks:
                    task.cancel()
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Return when no loop runs any more."""
        self._stopping.set()
        await self._ended.wait()
