"""One thread that computes, beside an event loop that keeps receiving.

Requests wait in the thread's queue, so that the next step starts without a turn of the loop.  Where the
executor says that it pays, a second thread decodes what arrives while the first computes.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from cloud_cluster.executor import BatchExecutor, Executor, batching
from cloud_cluster.replica_request import Done, Finished, Request
from cloud_cluster.schedule import Schedule
from shared.wire import Message

__all__ = ["Worker"]


class Worker:
    """Builds an executor in its thread, then runs there what it is given.

    Callbacks are called on the loop.  An exception that is not a SutureError is a defect: the thread ends
    and :meth:`failed` raises it.
    """

    def __init__(self, make_executor: Callable[[], Executor | BatchExecutor], name: str) -> None:
        self._make_executor = make_executor
        self._loop = asyncio.get_running_loop()
        self._arrivals: queue.SimpleQueue[Request | BaseException | None] = queue.SimpleQueue()
        self._busy = False
        self._decoder: ThreadPoolExecutor | None = None
        self._built: Future[BatchExecutor] = Future()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    async def start(self) -> BatchExecutor:
        """Start the thread and wait for its executor; raises what making it raised."""
        self._thread.start()
        return await asyncio.shield(asyncio.wrap_future(self._built))

    def submit(self, message: Message, callback: Callable[[Done], None]) -> None:
        request = Request(message, callback, time.perf_counter())
        if self._decoder is not None and self._busy:
            self._decoder.submit(self._decode_ahead, self._built.result(), request)
        else:
            self._arrivals.put(request)

    async def failed(self) -> None:
        """Waits until the thread ends; raises the defect that ended it.  Safe to cancel."""
        await asyncio.shield(asyncio.wrap_future(self._ended))

    async def stop(self) -> None:
        """Let the thread finish what it has, and wait for its end."""
        if self._thread.ident is None:
            return
        if self._decoder is not None:
            await asyncio.to_thread(self._decoder.shutdown)
        self._arrivals.put(None)
        await asyncio.wait([asyncio.wrap_future(self._ended)])

    def _main(self) -> None:
        try:
            executor = batching(self._make_executor())
        except BaseException as error:  # noqa: BLE001 - raised again where start() is awaited
            self._built.set_exception(error)
            self._ended.set_result(None)
            return
        if executor.decodes_ahead:
            self._decoder = ThreadPoolExecutor(1, f"{self._thread.name} decoder")
        self._built.set_result(executor)
        try:
            self._work(Schedule(executor))
        except BaseException as error:  # noqa: BLE001 - raised again where failed() is awaited
            self._ended.set_exception(error)
            return
        self._ended.set_result(None)

    def _work(self, schedule: Schedule) -> None:
        stopping = False
        while not (stopping and schedule.idle):
            self._busy = not schedule.idle
            while not stopping and (schedule.idle or not self._arrivals.empty()):
                arrival = self._arrivals.get()
                self._busy = True
                if isinstance(arrival, BaseException):
                    raise arrival
                if arrival is None:
                    stopping = True
                else:
                    self._deliver(schedule.add(arrival))
                # Not kept until the next one comes: it holds frames of up to megabytes.
                del arrival
            self._deliver(schedule.turn())

    def _deliver(self, finished: list[Finished]) -> None:
        if finished:
            self._loop.call_soon_threadsafe(_call, finished)

    def _decode_ahead(self, executor: BatchExecutor, request: Request) -> None:
        try:
            request.accept(executor)
            request.decode(executor, time.perf_counter)
        except BaseException as error:  # noqa: BLE001 - ends the computing thread, and failed() raises it
            self._arrivals.put(error)
            return
        self._arrivals.put(request)


def _call(finished: list[Finished]) -> None:
    for callback, done in finished:
        callback(done)
