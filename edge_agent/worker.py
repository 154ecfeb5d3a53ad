"""The one thread that computes, and the queue in front of it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from shared.errors import InternalError, UnavailableError

__all__ = ["Stopped", "Work", "Worker"]

log = logging.getLogger("suture.agent")

T = TypeVar("T")

_POLL_S = 0.005


class Stopped(Exception):
    """The work was withdrawn before it was done.  Never leaves the agent."""


class Work:
    """The claim of one request on the worker; :meth:`stop` may be called at any time, on the loop.

    What waits for the worker is then withdrawn at once; what runs looks at :attr:`stopped` now and then.
    """

    __slots__ = ("on_stop", "stopped")

    def __init__(self) -> None:
        self.stopped = False
        self.on_stop: Callable[[], None] | None = None

    def stop(self) -> None:
        self.stopped = True
        if self.on_stop is not None:
            self.on_stop()


@dataclass(slots=True, eq=False)
class _Job:
    body: Callable[[], Any]
    work: Work
    expected_ms: float
    submitted_s: float
    future: asyncio.Future[tuple[Any, float]]
    loop: asyncio.AbstractEventLoop
    started_s: float | None = None


class Worker:
    """Runs jobs one after the other in a thread of its own, in the order in which they came.

    ``set_up`` is called in the thread before its first job.  A thread that ends by something that is no
    Exception fails its job with InternalError and is replaced.
    """

    def __init__(self, name: str, set_up: Callable[[], None]) -> None:
        self._name = name
        self._set_up = set_up
        self._waiting: deque[_Job] = deque()
        self._running: _Job | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def queued_ms(self) -> float:
        """Expected time until a job submitted now would start."""
        with self._changed:
            total = sum(job.expected_ms for job in self._waiting)
            running = self._running
        if running is not None and running.started_s is not None:
            elapsed_ms = (time.perf_counter() - running.started_s) * 1000.0
            total += max(running.expected_ms - elapsed_ms, 0.0)
        return total

    async def run(self, body: Callable[[], T], work: Work, expected_ms: float) -> tuple[T, float]:
        """The result of ``body`` and the ms that it waited.  Cancel-safe: what has not begun is withdrawn.

        Raises Stopped when ``work`` was stopped before it began, UnavailableError when the worker is
        closed, InternalError when the thread could not go on, and whatever ``body`` raises.
        """
        if work.stopped:
            raise Stopped
        loop = asyncio.get_running_loop()
        job = _Job(body, work, expected_ms, time.perf_counter(), loop.create_future(), loop)
        work.on_stop = lambda: self._withdraw(job)
        self._submit(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            work.stop()
            raise
        finally:
            work.on_stop = None

    async def close(self, patience_s: float) -> bool:
        """Withdraw what has not begun and wait for what has.  False when that has not ended in time: its
        thread is left behind."""
        with self._changed:
            self._closed = True
            abandoned, thread = list(self._waiting), self._thread
            self._waiting.clear()
            self._changed.notify()
        for job in abandoned:
            _resolve(job, error=Stopped())
        until_s = time.monotonic() + patience_s
        while thread is not None and thread.is_alive():
            if time.monotonic() >= until_s:
                log.warning("a computation has not ended within %.0f s; going without it", patience_s)
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _submit(self, job: _Job) -> None:
        with self._changed:
            if self._closed:
                raise UnavailableError("the agent has stopped; start it again")
            self._waiting.append(job)
            if self._thread is None:
                self._start()
            else:
                self._changed.notify()

    def _withdraw(self, job: _Job) -> None:
        with self._changed:
            try:
                self._waiting.remove(job)
            except ValueError:
                return  # it runs, or has ended
        _resolve(job, error=Stopped())

    # in the thread

    def _start(self) -> None:
        # A daemon: a computation that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._set_up()
            while (job := self._next()) is not None:
                self._run(job)
                del job  # what it holds is not kept until the next one comes
        except BaseException as error:  # noqa: BLE001 - whoever waits for the job raises it
            self._on_death(error)

    def _next(self) -> _Job | None:
        with self._changed:
            self._running = None
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return None
            self._running = self._waiting.popleft()
            self._running.started_s = time.perf_counter()
            return self._running

    def _run(self, job: _Job) -> None:
        assert job.started_s is not None
        try:
            value = job.body()
        except Exception as error:  # noqa: BLE001 - raised by whoever waits for it
            _post(job, error=error)
        else:
            _post(job, value=(value, (job.started_s - job.submitted_s) * 1000.0))

    def _on_death(self, error: BaseException) -> None:
        """Fail the job that it was at, or all of them if it never got to one, and give way to another."""
        log.error("the worker thread ended: %r; another takes over", error)
        with self._changed:
            lost = [self._running] if self._running is not None else list(self._waiting)
            if self._running is None:
                self._waiting.clear()
            self._running = self._thread = None
            if self._waiting and not self._closed:
                self._start()
        for job in lost:
            _post(job, error=InternalError(f"the thread that computed this ended: {error!r}"))


def _post(job: _Job, value: Any = None, error: BaseException | None = None) -> None:
    """Hand the outcome to the loop of whoever waits, from the thread."""
    if not job.loop.is_closed():  # else nobody is left to wait
        job.loop.call_soon_threadsafe(_resolve, job, value, error)


def _resolve(job: _Job, value: Any = None, error: BaseException | None = None) -> None:
    if job.future.done():
        return
    if error is None:
        job.future.set_result(value)
    else:
        job.future.set_exception(error)
