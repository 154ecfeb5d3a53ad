"""Which request runs where and when: events in, actions out.

The dispatcher owns every admitted request from :meth:`Dispatcher.admit` until it leaves, and each
leaves exactly once: answered by a replica, failed with an error for its device, or dropped because
its device is gone.  Per model there is one queue ordered by deadline.  A replica has a window of
credits, the number of requests that it holds at once; sending takes one, its answer gives it back.

Times are milliseconds of the caller's monotonic clock and are always passed in; there is no I/O here.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from shared.errors import DeadlineError, OverloadedError, SutureError, UnavailableError

__all__ = ["Action", "Dispatcher", "Fail", "ModelState", "Released", "Request", "Send"]

_MAX_SENDS = 2
_HEAP_SLACK = 64


@dataclass(slots=True, eq=False)
class Request:
    """One admitted request.  ``body`` is the shell's own and is never looked at.

    ``work_ms`` is the expected compute time on an idle replica.  ``deadline_ms`` is infinite for a
    request without a budget.  ``abandoned``: its device is gone, the answer is for nobody.
    """

    id: int
    device: bytes
    model: int
    nbytes: int
    arrived_ms: float
    deadline_ms: float
    work_ms: float
    body: object
    sends: int = 0
    replica: bytes | None = None
    sent_ms: float = 0.0
    queued: bool = False
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """Give the request to the replica."""

    request: Request
    replica: bytes


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer the request's device with the error; the request has left, or was never admitted."""

    request: Request
    error: SutureError


@dataclass(frozen=True, slots=True)
class Released:
    """A draining replica has answered all that it had; nothing more will be sent to it."""

    replica: bytes


Action = Send | Fail | Released


@dataclass(frozen=True, slots=True)
class ModelState:
    """What the load report of one model is made from; totals count since the start."""

    ready: int
    queued: int
    in_flight: int
    queue_ms: float
    wait_ms: float
    slowdown: float
    admitted: int
    refused: int


@dataclass(slots=True)
class _Replica:
    model: int
    window: int
    slowdown: float = 1.0
    draining: bool = False
    in_flight: dict[int, Request] = field(default_factory=dict)

    def backlog_ms(self, now_ms: float) -> float:
        """Remaining work in expected milliseconds; it computes one request at a time, in order."""
        backlog, started_ms = 0.0, math.inf
        for request in self.in_flight.values():
            backlog += request.work_ms * self.slowdown
            started_ms = min(started_ms, request.sent_ms)
        return max(backlog - (now_ms - started_ms), 0.0) if self.in_flight else 0.0


@dataclass(slots=True)
class _Model:
    max_queue: int
    heap: list[tuple[float, int, Request]] = field(default_factory=list)
    queued: int = 0
    queue_ms: float = 0.0
    replicas: dict[bytes, _Replica] = field(default_factory=dict)
    admitted: int = 0
    refused: int = 0

    def ready(self) -> list[_Replica]:
        return [replica for replica in self.replicas.values() if not replica.draining]


@dataclass(slots=True)
class _Device:
    requests: dict[int, Request] = field(default_factory=dict)
    nbytes: int = 0


class Dispatcher:
    """See the module.  ``max_queues`` holds the longest queue of each model, by model index.

    ``first_id`` starts the request ids; a gateway that restarts must start elsewhere, so that a late
    answer to an earlier life matches nothing.
    """

    def __init__(
        self, max_queues: list[int], max_in_flight: int, max_in_flight_bytes: int, first_id: int = 1
    ) -> None:
        self._models = [_Model(max_queue) for max_queue in max_queues]
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._ids = itertools.count(first_id)
        self._requests: dict[int, Request] = {}
        self._replicas: dict[bytes, _Replica] = {}
        self._devices: dict[bytes, _Device] = {}

    @property
    def admitted_now(self) -> int:
        """Requests that were admitted and have not left."""
        return len(self._requests)

    # Devices

    def admit(
        self,
        device: bytes,
        model: int,
        *,
        nbytes: int,
        deadline_ms: float,
        work_ms: float,
        body: object,
        now_ms: float,
    ) -> tuple[Request, list[Action]]:
        """Take a request, or refuse it at once: the only action is then its Fail.

        A refusal is OverloadedError (the device's or the model's limit, with ``retry_after_ms``),
        UnavailableError (no replica) or DeadlineError (the budget was spent on the way).
        """
        request = Request(next(self._ids), device, model, nbytes, now_ms, deadline_ms, work_ms, body)
        refusal = self._refusal(request, now_ms)
        if refusal is not None:
            self._models[model].refused += 1
            return request, [Fail(request, refusal)]
        self._models[model].admitted += 1
        holder = self._devices.setdefault(device, _Device())
        holder.requests[request.id] = request
        holder.nbytes += nbytes
        self._requests[request.id] = request
        self._enqueue(request)
        return request, list(self._assign(model, now_ms))

    def _refusal(self, request: Request, now_ms: float) -> SutureError | None:
        model = self._models[request.model]
        holder = self._devices.get(request.device)
        if request.deadline_ms <= now_ms:
            return DeadlineError("the request's time budget was spent before it reached the gateway")
        if not model.ready():
            return UnavailableError("no replica of this model is ready; run it on the device meanwhile")
        retry_ms = max(self.wait_ms(request.model, now_ms), 1.0)
        if holder is not None and len(holder.requests) >= self._max_in_flight:
            return OverloadedError(
                f"this device has {len(holder.requests)} requests in flight, the most it may have", retry_ms
            )
        if (holder.nbytes if holder else 0) + request.nbytes > self._max_in_flight_bytes:
            return OverloadedError(
                f"this device would have more than {self._max_in_flight_bytes} bytes in flight", retry_ms
            )
        if model.queued >= model.max_queue:
            return OverloadedError(f"{model.queued} requests already wait for this model", retry_ms)
        return None

    def device_gone(self, device: bytes) -> None:
        """Drop what the device has queued; what already runs finishes for nobody."""
        holder = self._devices.get(device)
        for request_id in list(holder.requests) if holder else ():
            self.cancel(request_id)

    def cancel(self, request_id: int) -> None:
        """Nobody wants this answer any more; unknown ids are ignored, the request may have just left."""
        request = self._requests.get(request_id)
        if request is None:
            return
        if request.queued:
            self._dequeue(request)
            self._leave(request)
        else:
            request.abandoned = True

    # Replicas

    def replica_ready(self, replica: bytes, model: int, credits: int, now_ms: float) -> list[Action]:
        """A replica may be sent work; one that says so twice has lost what it held before."""
        actions = self.replica_gone(replica, now_ms) if replica in self._replicas else []
        self._replicas[replica] = self._models[model].replicas[replica] = _Replica(model, credits)
        return [*actions, *self._assign(model, now_ms)]

    def credit(self, replica: bytes, credits: int, slowdown: float, now_ms: float) -> list[Action]:
        """Widen the replica's window and note how slow it is against its profile."""
        state = self._replicas.get(replica)
        if state is None:
            return []
        state.window += credits
        state.slowdown = slowdown
        return list(self._assign(state.model, now_ms))

    def replica_draining(self, replica: bytes, now_ms: float) -> list[Action]:
        """Send it nothing more; Released follows once it has answered what it holds."""
        state = self._replicas.get(replica)
        if state is None:
            return [Released(replica)]
        state.draining = True
        return [*self._strand(state.model, now_ms), *self._release_if_drained(replica, state)]

    def replica_gone(self, replica: bytes, now_ms: float) -> list[Action]:
        """Queue what it held once more, where there is budget and another replica; else fail it."""
        state = self._replicas.pop(replica, None)
        if state is None:
            return []
        del self._models[state.model].replicas[replica]
        actions: list[Action] = []
        for request in state.in_flight.values():
            request.replica = None
            if request.abandoned:
                self._leave(request)
            elif request.deadline_ms <= now_ms:
                self._leave(request)
                actions.append(
                    Fail(request, DeadlineError("the replica was lost, and then the time ran out"))
                )
            elif request.sends >= _MAX_SENDS:
                self._leave(request)
                actions.append(Fail(request, UnavailableError("two replicas were lost under this request")))
            else:
                self._enqueue(request)
        actions += self._strand(state.model, now_ms)
        actions += self._assign(state.model, now_ms)
        return actions

    def finished(self, replica: bytes, request_id: int, now_ms: float) -> tuple[Request | None, list[Action]]:
        """The replica's answer came.  None when it answers nothing that it was asked in this session."""
        state = self._replicas.get(replica)
        request = state.in_flight.pop(request_id, None) if state else None
        if state is None or request is None:
            return None, []
        self._leave(request)
        return request, [*self._assign(state.model, now_ms), *self._release_if_drained(replica, state)]

    # Time

    def next_deadline_ms(self) -> float:
        """When :meth:`expire` next has something to do; infinite when nothing queued has a budget."""
        return min((self._head_deadline_ms(model) for model in self._models), default=math.inf)

    def expire(self, now_ms: float) -> list[Action]:
        """Fail whatever waits past its deadline."""
        actions: list[Action] = []
        for model in self._models:
            while self._head_deadline_ms(model) <= now_ms:
                request = model.heap[0][2]
                self._dequeue(request)
                self._leave(request)
                waited_ms = now_ms - request.arrived_ms
                actions.append(
                    Fail(request, DeadlineError(f"the time ran out after {waited_ms:.0f} ms in the queue"))
                )
        return actions

    def wait_ms(self, model: int, now_ms: float) -> float:
        """What a request of this model that arrives now would wait before it is computed."""
        state = self._models[model]
        ready = state.ready()
        if not ready:
            return 0.0
        queued_ms = state.queue_ms * _mean_slowdown(ready) / len(ready)
        return min(replica.backlog_ms(now_ms) for replica in ready) + queued_ms

    def model_state(self, model: int, now_ms: float) -> ModelState:
        state = self._models[model]
        ready = state.ready()
        return ModelState(
            ready=len(ready),
            queued=state.queued,
            in_flight=sum(len(replica.in_flight) for replica in state.replicas.values()),
            queue_ms=state.queue_ms,
            wait_ms=self.wait_ms(model, now_ms),
            slowdown=_mean_slowdown(ready),
            admitted=state.admitted,
            refused=state.refused,
        )

    # The moves

    def _enqueue(self, request: Request) -> None:
        model = self._models[request.model]
        request.queued = True
        model.queued += 1
        model.queue_ms += request.work_ms
        heapq.heappush(model.heap, (request.deadline_ms, request.id, request))

    def _dequeue(self, request: Request) -> None:
        model = self._models[request.model]
        request.queued = False
        model.queued -= 1
        # An empty queue is zero, whatever the rounding of sums and differences says.
        model.queue_ms = model.queue_ms - request.work_ms if model.queued else 0.0
        if len(model.heap) > 2 * model.queued + _HEAP_SLACK:
            model.heap = [entry for entry in model.heap if entry[2].queued]
            heapq.heapify(model.heap)

    def _leave(self, request: Request) -> None:
        del self._requests[request.id]
        holder = self._devices[request.device]
        del holder.requests[request.id]
        holder.nbytes -= request.nbytes
        if not holder.requests:
            del self._devices[request.device]

    def _head_deadline_ms(self, model: _Model) -> float:
        # Requests that left the queue otherwise are still in the heap; they are thrown out here.
        while model.heap and not model.heap[0][2].queued:
            heapq.heappop(model.heap)
        return model.heap[0][0] if model.heap else math.inf

    def _assign(self, index: int, now_ms: float) -> Iterator[Action]:
        model = self._models[index]
        while model.queued:
            free = [
                (len(replica.in_flight), name)
                for name, replica in model.replicas.items()
                if not replica.draining and len(replica.in_flight) < replica.window
            ]
            if not free:
                return
            self._head_deadline_ms(model)
            request = heapq.heappop(model.heap)[2]
            self._dequeue(request)
            if request.deadline_ms <= now_ms:
                self._leave(request)
                yield Fail(request, DeadlineError("the time ran out in the queue"))
                continue
            name = min(free)[1]
            request.sends += 1
            request.replica = name
            request.sent_ms = now_ms
            model.replicas[name].in_flight[request.id] = request
            yield Send(request, name)

    def _strand(self, index: int, now_ms: float) -> list[Action]:
        """Without a replica left, waiting is of no use: the devices had better go on alone now."""
        model = self._models[index]
        actions: list[Action] = []
        while not model.ready() and model.queued:
            self._head_deadline_ms(model)
            request = heapq.heappop(model.heap)[2]
            self._dequeue(request)
            self._leave(request)
            actions.append(Fail(request, UnavailableError("the last replica of this model has left")))
        return actions

    def _release_if_drained(self, name: bytes, replica: _Replica) -> list[Action]:
        if not replica.draining or replica.in_flight:
            return []
        del self._replicas[name]
        del self._models[replica.model].replicas[name]
        return [Released(name)]


def _mean_slowdown(replicas: list[_Replica]) -> float:
    return sum(replica.slowdown for replica in replicas) / len(replicas) if replicas else 1.0
