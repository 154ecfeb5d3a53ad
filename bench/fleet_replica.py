"""A replica of the simulated fleet: the product plans what runs together, arithmetic how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bench.virtual_time import Timeline
from cloud_cluster.batching import Pending, plan
from cloud_cluster.curves import BatchCurves
from cloud_cluster.work import Request
from shared.errors import DeadlineError, SutureError

__all__ = ["Answer", "Device", "FleetReplica", "Ticket"]

_SLOWDOWN_WEIGHT = 0.2
_SLOWDOWN_MIN_MS = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back with a result, in ms as the gateway and the replica report it."""

    span_ms: float
    wait_ms: float
    decode_ms: float
    compute_ms: float
    encode_ms: float


class Device(Protocol):
    """Who asked."""

    def answered(self, request_id: int, answer: Answer) -> None: ...

    def refused(self, request_id: int, error: SutureError) -> None: ...


@dataclass(frozen=True, slots=True)
class Ticket:
    """The gateway's ``body`` of a request; ``device`` is None where nobody waits for the answer."""

    device: Device | None
    device_request_id: int
    cut: int
    span_ms: float
    decode_ms: float
    encode_ms: float
    half_rtt_ms: float
    downlink_ms: float


class FleetReplica:
    """``finished`` is told of every request with its outcome and the ms of the replica's time that it took.

    ``about`` makes a planned duration a real one: noise, and whatever else slows replicas down.
    ``overhead`` is the share of it that the replica spends on top, on neither torch nor codecs.
    """

    def __init__(
        self,
        name: bytes,
        curves: BatchCurves,
        max_batch: int,
        time: Timeline,
        about: Callable[[float], float],
        overhead: float,
        finished: Callable[[bytes, Request, Answer | SutureError, float, int], None],
    ) -> None:
        self.name = name
        self.slowdown = 1.0
        self.busy_ms = 0.0
        self.done = 0
        """Totals since the start."""
        self._curves = curves
        self._max_batch = max_batch
        self._time = time
        self._about = about
        self._overhead = overhead
        self._finished = finished
        self._waiting: dict[int, tuple[Request, float]] = {}
        self._busy = False

    def take(self, request: Request) -> None:
        self._waiting[request.id] = (request, self._time.now_ms)
        if not self._busy:
            self._start()

    def _start(self) -> None:
        now_ms = self._time.now_ms
        for request, _ in [each for each in self._waiting.values() if each[0].deadline_ms <= now_ms]:
            del self._waiting[request.id]
            self._end(request, DeadlineError("the time ran out before the replica"), 0.0, 1)
        if not self._waiting:
            return
        pending = [
            Pending(request.id, _ticket(request).cut, 1, arrived_ms, request.deadline_ms)
            for request, arrived_ms in self._waiting.values()
        ]
        batch = plan(pending, self._curves, now_ms, self._max_batch).batches[0]
        taken = [self._waiting.pop(number) for number in batch.ids]
        planned_ms = batch.ends_ms - now_ms
        compute_ms = self._about(planned_ms)
        if planned_ms >= _SLOWDOWN_MIN_MS:
            self.slowdown += _SLOWDOWN_WEIGHT * (compute_ms / planned_ms - self.slowdown)
        besides_ms = sum(_ticket(request).decode_ms + _ticket(request).encode_ms for request, _ in taken)
        besides_ms += compute_ms * self._overhead
        self._busy = True
        self._time.after(compute_ms + besides_ms, self._done, taken, now_ms, compute_ms, besides_ms)

    def _done(
        self, taken: list[tuple[Request, float]], began_ms: float, compute_ms: float, besides_ms: float
    ) -> None:
        self._busy = False
        busy_ms = compute_ms + besides_ms
        self.busy_ms += busy_ms
        for request, arrived_ms in taken:
            ticket = _ticket(request)
            wait_ms = request.sent_ms - request.arrived_ms + began_ms - arrived_ms
            answer = Answer(ticket.span_ms, wait_ms, ticket.decode_ms, compute_ms, ticket.encode_ms)
            self._end(request, answer, busy_ms / len(taken), len(taken))
        if self._waiting:
            self._start()

    def _end(self, request: Request, outcome: Answer | SutureError, busy_ms: float, batch: int) -> None:
        self.done += 1
        self._finished(self.name, request, outcome, busy_ms, batch)


def _ticket(request: Request) -> Ticket:
    body: Any = request.body
    assert isinstance(body, Ticket)
    return body
