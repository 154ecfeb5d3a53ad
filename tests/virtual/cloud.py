"""A gateway in virtual time around the product's dispatcher, and replicas that misbehave."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloud_cluster.dispatch import Action, Dispatcher, Fail, Request, Send
from shared.errors import InternalError, SutureError
from shared.graph import Cut
from tests.virtual.worker import UNIT_MS

__all__ = ["FATES", "Gateway", "Ticket"]

FATES = ("answer", "slow", "twice", "garbage", "error", "swallow", "die")
"""What a replica may do with one request."""

_CLOUD_UNIT_MS = UNIT_MS / 10
_LOST_AFTER_MS = 300.0
_BACK_AFTER_MS = 700.0


@dataclass(eq=False)
class Ticket:
    """One request of a device: ``reply`` takes its fate, or the error."""

    device: str
    request_id: int
    cut: Cut
    reply: Callable[[str | SutureError], None]

    @property
    def work_ms(self) -> float:
        return len(self.cut.cloud_units) * _CLOUD_UNIT_MS


class Gateway:
    """``weights`` are those of :data:`FATES`."""

    def __init__(self, draw: random.Random, replicas: int, weights: tuple[float, ...]) -> None:
        self._draw = draw
        self._weights = weights
        self._loop = asyncio.get_running_loop()
        self._names = [f"replica-{number}".encode() for number in range(replicas)]
        self._numbers = itertools.count(1)
        self.start()

    def start(self) -> None:
        """For the first time, or after a crash that lost everything."""
        first_id = next(self._numbers) * 1_000_000
        self.dispatcher = Dispatcher([64], max_in_flight=32, max_in_flight_bytes=2**26, first_id=first_id)
        self._ids: dict[tuple[str, int], int] = {}
        self._lives: dict[bytes, object] = {}
        self._queues: dict[bytes, deque[Request]] = {}
        for name in self._names:
            self._ready(name)

    def infer(self, ticket: Ticket, nbytes: int, budget_ms: float, span_ms: float) -> None:
        """The last byte of a request is here; the first came ``span_ms`` ago."""
        now_ms = self._now_ms()
        request, actions = self.dispatcher.admit(
            ticket.device.encode(),
            0,
            nbytes=nbytes,
            deadline_ms=now_ms + budget_ms - span_ms,
            work_ms=ticket.work_ms,
            body=ticket,
            now_ms=now_ms,
        )
        self._ids[ticket.device, ticket.request_id] = request.id
        self._apply(actions)

    def cancel(self, device: str, request_id: int) -> None:
        if (device, request_id) in self._ids:
            self.dispatcher.cancel(self._ids[device, request_id])

    def device_gone(self, device: str) -> None:
        self.dispatcher.device_gone(device.encode())

    # replicas

    def _ready(self, name: bytes) -> None:
        self._lives[name] = object()
        self._queues[name] = deque()
        self._apply(self.dispatcher.replica_ready(name, 0, 2, self._now_ms()))

    def _gone(self, name: bytes, life: object) -> None:
        if self._lives.get(name) is life:
            self._lives[name] = None
            self._loop.call_later(_BACK_AFTER_MS / 1000.0, self._back, name, self.dispatcher)
            self._apply(self.dispatcher.replica_gone(name, self._now_ms()))

    def _back(self, name: bytes, dispatcher: Dispatcher) -> None:
        if dispatcher is self.dispatcher:
            self._ready(name)

    def _apply(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._queues[action.replica].append(action.request)
                if len(self._queues[action.replica]) == 1:
                    self._compute(action.replica)
            elif isinstance(action, Fail):
                self._reply(action.request, action.error)
        due_ms = self.dispatcher.next_deadline_ms()
        if math.isfinite(due_ms):
            self._loop.call_at(due_ms / 1000.0, self._expire, self.dispatcher)

    def _expire(self, dispatcher: Dispatcher) -> None:
        if dispatcher is self.dispatcher:
            now_ms = self._now_ms()
            if dispatcher.next_deadline_ms() <= now_ms:
                self._apply(dispatcher.expire(now_ms))

    def _compute(self, name: bytes) -> None:
        (fate,) = self._draw.choices(FATES, self._weights)
        request = self._queues[name][0]
        work_ms = _ticket(request).work_ms
        life = self._lives[name]
        if fate == "die":
            self._loop.call_later(work_ms / 2000.0, self._gone, name, life)
        elif fate == "swallow":  # it is stuck, and noticed as such
            self._loop.call_later(_LOST_AFTER_MS / 1000.0, self._gone, name, life)
        else:
            ms = work_ms * self._draw.uniform(5.0, 100.0) if fate == "slow" else work_ms
            self._loop.call_later(ms / 1000.0, self._computed, name, life, request, fate, ms)

    def _computed(self, name: bytes, life: object, request: Request, fate: str, ms: float) -> None:
        if self._lives.get(name) is not life:
            return
        self._queues[name].popleft()
        for _ in range(2 if fate == "twice" else 1):
            done, actions = self.dispatcher.finished(name, request.id, self._now_ms(), ms)
            if done is not None and not done.abandoned:
                self._reply(done, InternalError("a defect there") if fate == "error" else fate)
            self._apply(actions)
        if self._lives.get(name) is life and self._queues[name]:
            self._compute(name)

    def _reply(self, request: Request, outcome: str | SutureError) -> None:
        ticket = _ticket(request)
        self._ids.pop((ticket.device, ticket.request_id), None)
        ticket.reply(outcome)

    def _now_ms(self) -> float:
        return self._loop.time() * 1000.0


def _ticket(request: Request) -> Ticket:
    body: Any = request.body
    assert isinstance(body, Ticket)
    return body
