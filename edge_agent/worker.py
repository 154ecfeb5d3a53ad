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
    urgent: bool
    expected_ms: float
    submitted_s: float
    future: asyncio.Future[tuple[Any, float]]
    loop: asyncio.AbstractEventLoop
    started_s: float = 0.0
    waited_s: float = 0.0
    """Before it started, and for urgent jobs since."""

    def left_ms(self, now_s: float) -> float:
        elapsed_s = now_s - self.submitted_s - self.waited_s if self.started_s else 0.0
        return max(self.expected_ms - elapsed_s * 1000.0, 0.0)


class Worker:
    """Runs jobs one after the other in a thread of its own: urgent ones first, else in order of arrival.

    A job that is not urgent lets urgent ones in wherever it calls :meth:`give_way`.  ``set_up`` is called
    in the thread before its first job.  A thread that ends by something that is no Exception fails its job
    with InternalError and is replaced.
    """

    def __init__(self, name: str, set_up: Callable[[], None]) -> None:
        self._name = name
        self._set_up = set_up
        self._waiting: deque[_Job] = deque()
        self._urgent: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def queued_ms(self) -> float:
        """Expected time until a job submitted now would start."""
        now_s = time.perf_counter()
        with self._changed:
            return sum(job.left_ms(now_s) for job in (*self._running, *self._urgent, *self._waiting))

    def urgent_ms(self) -> float:
        """Expected time until an urgent job submitted now would start, if all others give way at once."""
        now_s = time.perf_counter()
        with self._changed:
            return sum(job.left_ms(now_s) for job in (*self._running, *self._urgent) if job.urgent)

    async def run(
        self, body: Callable[[], T], work: Work, expected_ms: float, *, urgent: bool = False
    ) -> tuple[T, float]:
        """The result of ``body`` and the ms that it waited.  Cancel-safe: what has not begun is withdrawn.

        Raises Stopped when ``work`` was stopped before it began, UnavailableError when the worker is
        closed, InternalError when the thread could not go on, and whatever ``body`` raises.
        """
        if work.stopped:
            raise Stopped
        loop = asyncio.get_running_loop()
        job = _Job(body, urgent, expected_ms, time.perf_counter(), loop.create_future(), loop)
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
            abandoned, thread = [*self._urgent, *self._waiting], self._thread
            self._urgent.clear()
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
            (self._urgent if job.urgent else self._waiting).append(job)
            if self._thread is None:
                self._start()
            else:
                self._changed.notify()

    def _withdraw(self, job: _Job) -> None:
        with self._changed:
            try:
                (self._urgent if job.urgent else self._waiting).remove(job)
            except ValueError:
                return  # it runs, or has ended
        _resolve(job, error=Stopped())

    # in the thread

    def _start(self) -> None:
        # A daemon: a computation that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        self._thread.start()

    def give_way(self) -> None:
        """To be called by a job, in the thread, between two steps: urgent jobs that wait are run now."""
        if not self._urgent or self._running[-1].urgent:
            return
        began_s = time.perf_counter()
        interrupted = self._running[-1]
        while self._urgent and (job := self._take(self._urgent)) is not None:
            self._run(job)
        interrupted.waited_s += time.perf_counter() - began_s

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
            while not self._urgent and not self._waiting and not self._closed:
                self._changed.wait()
            return self._take(self._urgent) or self._take(self._waiting)

    def _take(self, queue: deque[_Job]) -> _Job | None:
        with self._changed:
            if not queue:
                return None
            job = queue.popleft()
            self._running.append(job)
            job.started_s = time.perf_counter()
            job.waited_s = job.started_s - job.submitted_s
            return job

    def _run(self, job: _Job) -> None:
        value, error = None, None
        try:
            value = job.body()
        except Exception as raised:  # noqa: BLE001 - raised by whoever waits for it
            error = raised
        with self._changed:
            self._running.pop()
        _post(job, (value, job.waited_s * 1000.0), error)

    def _on_death(self, error: BaseException) -> None:
        """Fail what it was at, or all that waits if it never got to anything, and give way to another."""
        log.error("the worker thread ended: %r; another takes over", error)
        with self._changed:
            lost = list(self._running)
            if not lost:
                lost = [*self._urgent, *self._waiting]
                self._urgent.clear()
                self._waiting.clear()
            self._running.clear()
            self._thread = None
            if (self._urgent or self._waiting) and not self._closed:
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
