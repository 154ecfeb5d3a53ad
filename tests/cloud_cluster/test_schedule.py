from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from cloud_cluster.curves import BatchCurves
from cloud_cluster.executor import Job, Outcome
from cloud_cluster.replica_request import Done, Request
from cloud_cluster.schedule import Schedule
from shared.errors import CodecError, DeadlineError, InputMismatchError, RefusedError
from shared.wire import NO_BUDGET, Message
from shared.wire.frame import Frame0
from shared.wire.messages import Infer, MessageType
from tests.cloud_cluster.batch_peers import Clock

UNITS = 8
STEEP = BatchCurves((1, 16), ((10.0,) * UNITS, (14.0,) * UNITS))
FLAT = BatchCurves.flat((10.0,) * UNITS)


@dataclass(slots=True, eq=False)
class Walk:
    """Work: who runs together."""

    names: list[int]


class Stepping:
    """An executor in whose clock units take what its curves say; every run is noted.

    ``at`` is called before a run, with the names of the requests and the units.
    """

    digest = "sha256:a"

    def __init__(self, clock: Clock, curves: BatchCurves = STEEP, max_batch: int = 8) -> None:
        self.clock = clock
        self.curves = curves
        self.unit_ms: Sequence[float] = curves.unit_ms[0]
        self.max_batch = max_batch
        self.slowdown = 1.0
        self.runs: list[tuple[list[int], list[int]]] = []
        self.at: Callable[[list[int], Sequence[int]], None] = lambda names, units: None

    def place_from(self, unit: int) -> int:
        return unit

    def accept(self, message: Message) -> Job:
        if message.cut > UNITS:
            raise InputMismatchError("no such cut")
        return Job(message.cut, (), message.header.batch, message.request_id)

    def decode(self, job: Job) -> None:
        self.clock.s += 0.001
        if job.body == 13:
            raise CodecError("damaged")

    def run(self, parts: Sequence[Any], units: Sequence[int]) -> tuple[Walk, float]:
        names = [name for part in parts for name in ([part.body] if isinstance(part, Job) else part.names)]
        self.runs.append((names, list(units)))
        self.at(names, units)
        took_ms = self.curves.units_ms(units, len(names)) * self.slowdown
        self.clock.s += took_ms / 1e3
        return Walk(names), took_ms

    def finish(self, work: Walk, jobs: Sequence[Job]) -> list[Outcome]:
        assert work.names == [job.body for job in jobs], "jobs in the order in which they were joined"
        return [Outcome([], [], encode_ms=0.0) for _ in jobs]


class Drive:
    def __init__(self, curves: BatchCurves = STEEP, max_batch: int = 8) -> None:
        self.clock = Clock()
        self.executor = Stepping(self.clock, curves, max_batch)
        self.schedule = Schedule(self.executor, self.clock)
        self.answers: dict[int, Done] = {}
        self.order: list[int] = []

    def add(self, name: int, cut: int = 0, budget_ms: int = NO_BUDGET) -> None:
        frame0 = Frame0(MessageType.INFER, request_id=name, cut=cut, budget_ms=budget_ms)
        message = Message(frame0, Infer(batch=1, tensors=[], reply_codec=0x10))

        def answered(done: Done) -> None:
            assert name not in self.answers, "answered twice"
            self.answers[name] = done
            self.order.append(name)

        for callback, done in self.schedule.add(Request(message, answered, self.clock.s)):
            callback(done)

    def turn(self) -> None:
        for callback, done in self.schedule.turn():
            callback(done)

    def finish(self) -> None:
        turns = 0
        while not self.schedule.idle:
            self.turn()
            turns += 1
            assert turns < 200


def test_two_of_one_cut_run_in_one_batch_and_share_the_time_it_took() -> None:
    drive = Drive()
    drive.add(1)
    drive.add(2)
    drive.finish()
    assert {tuple(names) for names, _ in drive.executor.runs} == {(1, 2)}
    whole_ms = STEEP.ms(0, UNITS, 2)
    for done in drive.answers.values():
        assert isinstance(done.outcome, Outcome)
        assert done.batch_requests == 2
        assert done.outcome.compute_ms == pytest.approx(whole_ms)
        assert done.outcome.expected_ms == pytest.approx(whole_ms)
        assert done.busy_ms == pytest.approx(whole_ms / 2 + 1.0)
    # The second was decoded while the first waited: the stages and the wait make up the whole time.
    assert drive.answers[1].wait_ms == pytest.approx(1.0)


def test_one_that_comes_while_another_runs_waits_where_that_will_come_by() -> None:
    drive = Drive()
    drive.add(1)
    drive.turn()
    assert drive.executor.runs == [([1], [0, 1])]
    drive.add(2, cut=4)
    drive.finish()
    assert ([1], [2, 3]) in drive.executor.runs
    assert ([1, 2], [4, 5]) in drive.executor.runs
    assert drive.order == [1, 2]
    assert {done.batch_requests for done in drive.answers.values()} == {2}


def test_one_that_comes_early_enough_catches_up() -> None:
    drive = Drive()
    drive.add(1)
    drive.turn()
    drive.add(2)
    drive.finish()
    assert ([2], [0, 1]) in drive.executor.runs
    assert {done.batch_requests for done in drive.answers.values()} == {2}
    ran = [unit for names, units in drive.executor.runs for unit in units if 1 in names]
    assert ran == list(range(UNITS))


def test_where_nothing_is_gained_each_runs_in_one_go() -> None:
    drive = Drive(FLAT)
    drive.add(1)
    drive.add(2, budget_ms=500)
    drive.finish()
    assert drive.executor.runs == [([2], list(range(UNITS))), ([1], list(range(UNITS)))]
    assert {done.batch_requests for done in drive.answers.values()} == {1}


def test_what_is_wrong_with_a_request_is_its_own_affair() -> None:
    drive = Drive()
    drive.add(1, cut=9)
    assert isinstance(drive.answers[1].outcome, InputMismatchError)
    drive.add(2)
    drive.add(13)
    drive.add(3)
    drive.finish()
    assert isinstance(drive.answers[13].outcome, CodecError)
    assert {drive.answers[name].batch_requests for name in (2, 3)} == {2}


def test_after_a_failure_together_each_begins_again_alone() -> None:
    drive = Drive()

    def fail(names: list[int], units: Sequence[int]) -> None:
        if 2 in names and 6 in units:
            raise InputMismatchError("no such token")

    drive.executor.at = fail
    for name in (1, 2, 3):
        drive.add(name)
    drive.finish()
    assert isinstance(drive.answers[2].outcome, InputMismatchError)
    for name in (1, 3):
        assert isinstance(drive.answers[name].outcome, Outcome)
        assert drive.answers[name].batch_requests == 1
        assert ([name], list(range(UNITS))) in drive.executor.runs


def test_when_memory_does_not_suffice_batches_are_smaller_from_then_on() -> None:
    drive = Drive()

    def fail(names: list[int], units: Sequence[int]) -> None:
        if len(names) > 2:
            raise RefusedError("no memory")

    drive.executor.at = fail
    for name in range(4):
        drive.add(name)
    drive.finish()
    assert all(isinstance(done.outcome, Outcome) for done in drive.answers.values())
    for name in range(4, 8):
        drive.add(name)
    drive.finish()
    assert all(drive.answers[name].batch_requests == 2 for name in range(4, 8))


def test_what_is_out_of_time_is_answered_and_not_run() -> None:
    drive = Drive(FLAT)
    drive.add(1)
    drive.turn()
    drive.add(2, budget_ms=30)
    drive.clock.s += 0.05
    drive.add(3)
    drive.finish()
    assert isinstance(drive.answers[2].outcome, DeadlineError)
    assert all(names != [2] for names, _ in drive.executor.runs)


def test_a_slow_replica_joins_only_what_is_in_time_at_its_pace() -> None:
    """Together takes 82 ms by the curves, alone 80; at half the pace 164 and 160."""
    for slowdown, budget_ms, together in ((1.0, 84, 2), (2.0, 162, 1), (2.0, 168, 2)):
        drive = Drive()
        drive.executor.slowdown = slowdown
        for name in range(100, 130):
            drive.add(name)
            drive.finish()
        drive.add(1, budget_ms=budget_ms)
        drive.add(2)
        drive.finish()
        assert drive.answers[1].batch_requests == together
        assert isinstance(drive.answers[1].outcome, Outcome)
