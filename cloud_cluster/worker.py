"""One thread that computes, beside an event loop that keeps receiving.

Requests wait in the thread's queue, so that the next one starts without a turn of the loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from cloud_cluster.executor import Executor, Outcome
from shared.errors import DeadlineError, SutureError
from shared.wire import NO_BUDGET, Message

__all__ = ["Done", "Worker"]


@dataclass(frozen=True, slots=True)
class Done:
    """One finished request: its outcome or its error, and the ms it waited for the thread.

    ``busy_ms`` is how long the thread was occupied by it.
    """

    outcome: Outcome | SutureError
    wait_ms: float
    busy_ms: float


class Worker:
    """Builds an executor in its thread, then runs it there, one request after the other.

    Callbacks are called on the loop.  An exception that is not a SutureError is a defect: the thread ends
    and :meth:`failed` raises it.
    """

    def __init__(self, make_executor: Callable[[], Executor], name: str) -> None:
        self._make_executor = make_executor
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Message, float, Callable[[Done], None]] | None] = (
            queue.SimpleQueue()
        )
        self._built: Future[Executor] = Future()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    async def start(self) -> Executor:
        """Start the thread and wait for its executor; raises what making it raised."""
        self._thread.start()
        return await asyncio.shield(asyncio.wrap_future(self._built))

    def submit(self, message: Message, done: Callable[[Done], None]) -> None:
        self._jobs.put((message, time.perf_counter(), done))

    async def failed(self) -> None:
        """Waits until the thread ends; raises the defect that ended it.  Safe to cancel."""
        await asyncio.shield(asyncio.wrap_future(self._ended))

    async def stop(self) -> None:
        """Let the thread finish what it has, and wait for its end."""
        if self._thread.ident is None:
            return
        self._jobs.put(None)
        await asyncio.wait([asyncio.wrap_future(self._ended)])

    def _main(self) -> None:
        try:
            executor = self._make_executor()
        except BaseException as error:  # noqa: BLE001 - raised again where start() is awaited
            self._built.set_exception(error)
            self._ended.set_result(None)
            return
        self._built.set_result(executor)
        try:
            while (job := self._jobs.get()) is not None:
                message, submitted, callback = job
                done = _run(executor, message, submitted)
                self._loop.call_soon_threadsafe(callback, done)
                # Not kept until the next job comes: they hold frames of up to megabytes.
                del job, message, done, callback
        except BaseException as error:  # noqa: BLE001 - raised again where failed() is awaited
            self._ended.set_exception(error)
            return
        self._ended.set_result(None)


def _run(executor: Executor, message: Message, submitted: float) -> Done:
    started = time.perf_counter()
    wait_ms = (started - submitted) * 1e3
    outcome: Outcome | SutureError
    if message.budget_ms != NO_BUDGET and wait_ms >= message.budget_ms:
        outcome = DeadlineError(f"the time ran out after {wait_ms:.0f} ms before the replica")
    else:
        try:
            outcome = executor.execute(message)
        except SutureError as error:
            outcome = error
    return Done(outcome, wait_ms, (time.perf_counter() - started) * 1e3)
