"""The thread that computes: order, withdrawal, its death, and a computation that does not come back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest

from edge_agent.worker import Stopped, Work, Worker
from shared.errors import InternalError, UnavailableError
from tests.edge_agent.fake_gateway import eventually


def nothing() -> None:
    return None


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker("test", nothing)
    yield worker
    assert await worker.close(20.0)


class Held:
    """A job that runs until it is let go."""

    def __init__(self, worker: Worker, expected_ms: float = 0.0) -> None:
        self.begun, self.release = threading.Event(), threading.Event()
        self.task = asyncio.ensure_future(worker.run(self._body, Work(), expected_ms))

    def _body(self) -> str:
        self.begun.set()
        assert self.release.wait(20)
        return "held"

    async def running(self) -> Held:
        await eventually(self.begun.is_set)
        return self


async def test_jobs_run_in_order_in_one_thread_of_their_own(worker: Worker) -> None:
    threads: list[tuple[int, str]] = []

    def body(number: int) -> int:
        threads.append((number, threading.current_thread().name))
        return number

    runs = [worker.run(lambda number=number: body(number), Work(), 0.0) for number in range(20)]
    results = await asyncio.gather(*runs)
    assert [value for value, _ in results] == list(range(20))
    assert threads == [(number, "test") for number in range(20)]
    assert all(wait_ms >= 0 for _, wait_ms in results)


async def test_stopping_what_waits_ends_it_at_once_and_frees_its_place(worker: Worker) -> None:
    held = await Held(worker).running()
    work = Work()
    waiting = asyncio.ensure_future(worker.run(lambda: pytest.fail("it was withdrawn"), work, 500.0))
    await asyncio.sleep(0)
    assert worker.queued_ms() == 500.0
    work.stop()
    with pytest.raises(Stopped):  # while the worker is still at the other job
        await waiting
    assert not held.task.done()
    assert worker.queued_ms() == 0.0
    held.release.set()
    assert (await held.task)[0] == "held"
    with pytest.raises(Stopped):
        await worker.run(lambda: pytest.fail("it was stopped before"), work, 0.0)


@pytest.mark.parametrize("killer", [SystemExit(3), KeyboardInterrupt()])
async def test_a_thread_that_dies_fails_its_job_and_another_goes_on(
    worker: Worker, killer: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    idents: list[int | None] = []

    def die() -> None:
        idents.append(threading.current_thread().ident)
        raise killer

    dying = asyncio.ensure_future(worker.run(die, Work(), 0.0))
    behind = asyncio.ensure_future(worker.run(threading.current_thread, Work(), 0.0))
    with pytest.raises(InternalError, match=type(killer).__name__):
        await dying
    thread, _ = await behind
    assert thread.name == "test"
    assert thread.ident != idents[0] or not thread.is_alive()
    assert "another takes over" in caplog.text
    assert (await worker.run(lambda: 7, Work(), 0.0))[0] == 7


async def test_a_thread_that_cannot_be_set_up_fails_what_waits_and_is_tried_again() -> None:
    tries = 0

    def set_up() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError("no more threads")

    worker = Worker("test", set_up)
    with pytest.raises(InternalError, match="no more threads"):
        await worker.run(nothing, Work(), 0.0)
    assert (await worker.run(lambda: 7, Work(), 0.0))[0] == 7
    assert await worker.close(20.0)


async def test_closing_skips_what_waits_and_leaves_what_does_not_come_back() -> None:
    worker = Worker("test", nothing)
    held = await Held(worker).running()
    waiting = asyncio.ensure_future(worker.run(nothing, Work(), 0.0))
    await asyncio.sleep(0)
    assert not await worker.close(0.05)
    with pytest.raises(Stopped):
        await waiting
    with pytest.raises(UnavailableError):
        await worker.run(nothing, Work(), 0.0)
    held.release.set()
    assert (await held.task)[0] == "held"
    assert await worker.close(20.0)


async def test_nothing_piles_up_behind_a_computation_that_hangs(worker: Worker) -> None:
    held = await Held(worker).running()
    for _ in range(100):
        work = Work()
        waiting = asyncio.ensure_future(worker.run(nothing, work, 10.0))
        await asyncio.sleep(0)
        work.stop()
        with pytest.raises(Stopped):
            await waiting
    assert worker.queued_ms() == 0.0
    assert len(worker._waiting) == 0
    held.release.set()
    await held.task


async def test_urgent_jobs_go_first_and_in_between_the_steps_of_others(worker: Worker) -> None:
    steps: list[str] = []
    begun, release = threading.Event(), threading.Event()

    def in_steps() -> str:
        begun.set()
        assert release.wait(20)
        for step in ("one", "two"):
            worker.give_way()
            steps.append(step)
        return "in steps"

    def urgent(name: str) -> None:
        steps.append(name)
        worker.give_way()  # an urgent job lets nobody in

    slow = asyncio.ensure_future(worker.run(in_steps, Work(), 1000.0))
    await eventually(begun.is_set)
    waiting = asyncio.ensure_future(worker.run(lambda: steps.append("waiting"), Work(), 50.0))
    await asyncio.sleep(0)
    assert worker.urgent_ms() == 0.0
    first = asyncio.ensure_future(worker.run(lambda: urgent("first"), Work(), 30.0, urgent=True))
    second = asyncio.ensure_future(worker.run(lambda: urgent("second"), Work(), 20.0, urgent=True))
    await asyncio.sleep(0)
    assert worker.urgent_ms() == 50.0
    assert worker.queued_ms() > 100.0  # and what is left of the one that runs
    release.set()
    await asyncio.gather(slow, waiting, first, second)
    assert steps == ["first", "second", "one", "two", "waiting"]
    assert worker.queued_ms() == worker.urgent_ms() == 0.0


async def test_time_lost_to_urgent_jobs_counts_as_waiting(worker: Worker) -> None:
    begun, release = threading.Event(), threading.Event()

    def in_steps() -> None:
        begun.set()
        assert release.wait(20)
        worker.give_way()

    slow = asyncio.ensure_future(worker.run(in_steps, Work(), 0.0))
    await eventually(begun.is_set)
    urgent = asyncio.ensure_future(worker.run(lambda: time.sleep(0.05), Work(), 0.0, urgent=True))
    await asyncio.sleep(0)
    release.set()
    await urgent
    _, waited_ms = await slow
    assert waited_ms >= 50.0


async def test_an_urgent_job_that_dies_takes_what_it_interrupted_along(worker: Worker) -> None:
    begun, release = threading.Event(), threading.Event()

    def in_steps() -> None:
        begun.set()
        assert release.wait(20)
        worker.give_way()

    def die() -> None:
        raise SystemExit(3)

    slow = asyncio.ensure_future(worker.run(in_steps, Work(), 0.0))
    await eventually(begun.is_set)
    dying = asyncio.ensure_future(worker.run(die, Work(), 0.0, urgent=True))
    await asyncio.sleep(0)
    release.set()
    for each in (slow, dying):
        with pytest.raises(InternalError):
            await each
    assert (await worker.run(lambda: 7, Work(), 0.0))[0] == 7
