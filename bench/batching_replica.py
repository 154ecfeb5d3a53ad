"""A gateway and one replica in virtual time: the product's dispatcher and schedule, arithmetic for torch.

A run is the same loop as a replica's thread: take in who has come, run the next step of the plan, and so
on.  Who comes while a step runs is taken in after it, but has arrived when it arrived.
"""

from __future__ import annotations

import math
import time as real_time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.virtual_time import Timeline
from cloud_cluster.batching import Plan, plan, plan_of
from cloud_cluster.curves import BatchCurves
from cloud_cluster.dispatch import Action, Dispatcher, Request, Send
from cloud_cluster.executor import Job, Outcome
from cloud_cluster.grouping import Pending, Waiting
from cloud_cluster.joining import Places
from cloud_cluster.replica_request import Done, Finished
from cloud_cluster.replica_request import Request as ReplicaRequest
from cloud_cluster.schedule import Planner, Schedule
from shared.codec import Codec
from shared.errors import SutureError
from shared.wire import Message, budget_from_ms
from shared.wire.frame import Frame0
from shared.wire.messages import Infer, MessageType

__all__ = ["POLICIES", "Ask", "Policy", "Ran", "plan_same_cut", "run_replica"]

_CREDITS, _MAX_QUEUE = 2, 256
_INFER = Infer(batch=1, tensors=[], reply_codec=Codec.FLOAT32)


@dataclass(frozen=True, slots=True)
class Policy:
    """A way to batch.  ``joins_under_way``: requests that run already may be joined by others."""

    name: str
    max_batch: int
    planner: Planner
    joins_under_way: bool = True


class _SameCut(Waiting):
    """As the product searches, but only requests of one cut may run together."""

    def group_ms(self, group: Sequence[int]) -> float:
        if len({self.items[index].cut for index in group}) > 1:
            return math.inf
        return super().group_ms(group)


def plan_same_cut(
    pending: Iterable[Pending],
    curves: BatchCurves,
    now_ms: float,
    max_batch: int = 8,
    *,
    behind: float = 0.0,
    margin: float = 0.05,
) -> Plan:
    """:func:`cloud_cluster.batching.plan` of a server that knows only whole networks with one input each."""
    return plan_of(_SameCut(pending, curves, now_ms, max_batch, behind, margin))


POLICIES = (
    Policy("none", 1, plan),
    Policy("same cut", 8, plan_same_cut, joins_under_way=False),
    Policy("across cuts", 8, plan),
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: when, whose, from which cut on, and how long after its arrival it is of no use."""

    at_ms: float
    device: int
    cut: int
    budget_ms: float


@dataclass(slots=True)
class Ran:
    """``latency_ms`` by request, infinite where it was refused or too late."""

    latency_ms: list[float]
    batches: list[int] = field(default_factory=list)
    """Of every answer, how many requests shared its batch."""

    planning_ms: float = 0.0
    """Real time spent on planning; in virtual time it takes none."""

    plans: int = 0


@dataclass(slots=True, eq=False)
class _Walk:
    batch: int


class _Arithmetic:
    """An executor (:class:`cloud_cluster.executor.BatchExecutor`) whose runs move the clock."""

    digest = "sha256:arithmetic"

    def __init__(self, curves: BatchCurves, places: Places, policy: Policy) -> None:
        self.curves = curves
        self.unit_ms: Sequence[float] = curves.unit_ms[0]
        self.max_batch = policy.max_batch
        self.now_s = 0.0
        self._places = places
        self._joins_under_way = policy.joins_under_way

    def clock(self) -> float:
        return self.now_s

    def place_from(self, unit: int) -> int:
        return self._places.following(unit) if self._joins_under_way else self.curves.units

    def accept(self, message: Message) -> Job:
        place = self._places.following(message.cut)
        return Job(place, range(message.cut, place), 1, message)

    def decode(self, job: Job) -> None:
        """There is nothing in it."""

    def run(self, parts: Sequence[Any], units: Sequence[int]) -> tuple[_Walk, float]:
        batch = sum(part.batch for part in parts)
        took_ms = self.curves.units_ms(units, batch)
        self.now_s += took_ms / 1e3
        return _Walk(batch), took_ms

    def finish(self, work: _Walk, jobs: Sequence[Job]) -> list[Outcome]:
        return [Outcome([], []) for _ in jobs]


def run_replica(
    curves: BatchCurves, places: Places, policy: Policy, asks: Sequence[Ask], hop_ms: float
) -> Ran:
    """All requests, until the last has left; half of the hop is between gateway and replica each way."""
    cloud = _Cloud(curves, places, policy, asks, hop_ms)
    for number, ask in enumerate(asks):
        cloud.time.at(ask.at_ms, cloud.admit, number)
    cloud.time.run(math.inf)
    return cloud.ran


class _Cloud:
    def __init__(
        self, curves: BatchCurves, places: Places, policy: Policy, asks: Sequence[Ask], hop_ms: float
    ) -> None:
        self.time = Timeline()
        self.ran = Ran([math.inf] * len(asks))
        self._asks = asks
        self._half_ms = hop_ms / 2
        self._curves = curves
        self._executor = _Arithmetic(curves, places, policy)
        self._schedule = Schedule(self._executor, self._executor.clock, self._timed(policy.planner))
        self._dispatcher = Dispatcher([_MAX_QUEUE], max_in_flight=32, max_in_flight_bytes=2**30)
        useful = curves.useful_batch(policy.max_batch)
        # As cloud_cluster.tail: one batch that runs and one that waits.
        held = max(_CREDITS, 2 * useful) if useful > 1 else _CREDITS
        self._arrivals: list[ReplicaRequest] = []
        self._busy = False
        self._expiry_ms = math.inf
        self._apply(self._dispatcher.replica_ready(b"replica", 0, held, 0.0))

    # the gateway

    def admit(self, number: int) -> None:
        ask, now_ms = self._asks[number], self.time.now_ms
        _, actions = self._dispatcher.admit(
            ask.device.to_bytes(2, "big"),
            0,
            nbytes=1,
            deadline_ms=now_ms + ask.budget_ms,
            work_ms=self._curves.ms(ask.cut, self._curves.units, 1),
            body=number,
            now_ms=now_ms,
        )
        self._apply(actions)

    def _apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.time.after(self._half_ms, self._take, action.request)
        due_ms = self._dispatcher.next_deadline_ms()
        if due_ms < self._expiry_ms:
            self._expiry_ms = due_ms
            self.time.at(due_ms, self._expire, due_ms)

    def _expire(self, due_ms: float) -> None:
        if due_ms == self._expiry_ms:
            self._expiry_ms = math.inf
            self._apply(self._dispatcher.expire(self.time.now_ms))

    def _answered(self, request: Request, done: Done) -> None:
        now_ms = self.time.now_ms
        _, actions = self._dispatcher.finished(
            b"replica", request.id, now_ms, done.busy_ms, done.batch_requests
        )
        number = request.body
        assert isinstance(number, int)
        if not isinstance(done.outcome, SutureError) and now_ms <= request.deadline_ms:
            self.ran.latency_ms[number] = now_ms - self._asks[number].at_ms
            self.ran.batches.append(done.batch_requests)
        self._apply(actions)

    # the replica

    def _take(self, request: Request) -> None:
        now_ms = self.time.now_ms
        number = request.body
        assert isinstance(number, int)
        frame0 = Frame0(
            MessageType.INFER,
            request_id=request.id,
            cut=self._asks[number].cut,
            budget_ms=budget_from_ms(request.deadline_ms - now_ms),
        )

        def answered(done: Done) -> None:
            self.time.after(self._half_ms, self._answered, request, done)

        self._arrivals.append(ReplicaRequest(Message(frame0, _INFER), answered, now_ms / 1e3))
        if not self._busy:
            self._turn()

    def _turn(self) -> None:
        self._executor.now_s = self.time.now_ms / 1e3
        arrivals, self._arrivals = self._arrivals, []
        for arrival in arrivals:
            _deliver(self._schedule.add(arrival))
        self._busy = not self._schedule.idle
        if self._busy:
            finished = self._schedule.turn()
            self.time.at(self._executor.now_s * 1e3, self._turned, finished)

    def _turned(self, finished: list[Finished]) -> None:
        _deliver(finished)
        self._turn()

    def _timed(self, planner: Planner) -> Planner:
        def timed(
            pending: Iterable[Pending],
            curves: BatchCurves,
            now_ms: float,
            max_batch: int,
            *,
            behind: float,
            margin: float,
        ) -> Plan:
            began_s = real_time.perf_counter()
            made = planner(pending, curves, now_ms, max_batch, behind=behind, margin=margin)
            self.ran.planning_ms += (real_time.perf_counter() - began_s) * 1e3
            self.ran.plans += 1
            return made

        return timed


def _deliver(finished: Iterable[tuple[Callable[[Done], None], Done]]) -> None:
    for callback, done in finished:
        callback(done)
