"""Requests at random moments whatever becomes of those before, each compared and written down.

``python -m bench.chaos_load SOCKET MODEL ANSWERS HISTORY`` is a controlled child: applications in a process
of their own, which ask the agent through its local socket.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.chaos_schedule import arrivals
from bench.child import answer
from edge_agent.client import Client
from edge_agent.result import Result
from shared.errors import SutureError

__all__ = ["Answers", "History", "Load"]

_CLIENTS = 3
_TICK_S = 0.005
_LATE_MS = 10.0

Array = npt.NDArray[Any]
Infer = Callable[..., Awaitable[Result]]


class Answers:
    """Inputs, and what the whole network says of each."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self._inputs, self._outputs = file["inputs"], file["outputs"]

    @classmethod
    def save(cls, path: Path, inputs: Array, outputs: Array) -> None:
        np.savez(path, inputs=inputs, outputs=outputs)

    def input(self, number: int) -> Array:
        found: Array = self._inputs[number % len(self._inputs)]
        return found

    def error(self, number: int, outputs: Array) -> float:
        """The largest difference, relative to the largest score; infinite for another shape."""
        expected = self._outputs[number % len(self._outputs)]
        if outputs.shape != expected.shape:
            return float("inf")
        return float(np.abs(outputs - expected).max() / np.abs(expected).max())


class History:
    """A file of events, see :mod:`bench.history`; each is in it before the next thing happens."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def add(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, "at_s": time.monotonic(), **fields}) + "\n")

    def close(self) -> None:
        self._file.close()


class Load:
    """One application that asks ``infer`` (input, ``deadline_ms``)."""

    def __init__(self, source: str, infer: Infer, answers: Answers, history: History) -> None:
        self._source = source
        self._infer = infer
        self._answers = answers
        self._history = history
        self._number = 0

    async def run(self, seconds: float, per_s: float, seed: int, deadline_ms: float, guard: bool) -> None:
        """Ask for so long; returns once everything has ended."""
        began_s = time.monotonic()
        ticking = asyncio.create_task(self._watch_the_loop())
        try:
            async with asyncio.TaskGroup() as group:
                for at_s in arrivals(seconds, per_s, seed):
                    await asyncio.sleep(max(began_s + at_s - time.monotonic(), 0.0))
                    self._number += 1
                    group.create_task(self._ask(self._number, deadline_ms, guard))
        finally:
            ticking.cancel()

    async def _ask(self, number: int, deadline_ms: float, guard: bool) -> None:
        request_id = f"{self._source}-{number}"
        self._history.add("issued", id=request_id, source=self._source, guard=guard, deadline_ms=deadline_ms)
        found: dict[str, Any]
        try:
            result = await self._infer(self._answers.input(number), deadline_ms=deadline_ms)
        except SutureError as error:
            found = {"outcome": type(error).__name__, "message": str(error)}
        else:
            found = {
                "outcome": str(result.where),
                "fallback": result.fallback,
                "cut": result.cut_index,
                "ms": result.latency_ms,
                "reason": result.decision.get("reason"),
                "error": self._answers.error(number, result.outputs),
            }
        self._history.add("completed", id=request_id, **found)

    async def _watch_the_loop(self) -> None:
        """What this process does late, it sees late: that is no one else's doing."""
        due_s = time.monotonic() + _TICK_S
        while True:
            await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
            now_s = time.monotonic()
            if (now_s - due_s) * 1e3 > _LATE_MS:
                self._history.add("lag", source=self._source, ms=(now_s - due_s) * 1e3)
            due_s = now_s + _TICK_S


async def _serve(socket: str, model: str, answers: Answers, history: History) -> None:
    async with AsyncExitStack() as stack:
        loads = []
        for number in range(_CLIENTS):
            client = await stack.enter_async_context(Client(socket, patience_s=10.0))
            loads.append(Load(f"client-{number}", partial(client.infer, model), answers, history))

        async def load(seconds: float, per_s: float, seed: int, deadline_ms: float, guard: bool) -> None:
            each_s = per_s / len(loads)
            async with asyncio.TaskGroup() as group:
                for number, one in enumerate(loads):
                    group.create_task(one.run(seconds, each_s, seed + number, deadline_ms, guard))

        await answer({"load": load}, {})


if __name__ == "__main__":
    to, network, answers_path, history_path = sys.argv[1:]
    asyncio.run(_serve(to, network, Answers(Path(answers_path)), History(Path(history_path))))
