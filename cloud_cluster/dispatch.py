"""Which request runs where and when: events in, actions out.

The dispatcher owns every admitted request from :meth:`Dispatcher.admit` until it leaves, and each
leaves exactly once: answered by a replica, failed with an error for its device, or dropped because
its device is gone.  Per model there is one queue, in the order of :mod:`cloud_cluster.fairness`.  A replica
has a window of credits, the number of requests that it holds at once; sending takes one, its answer gives
it back.

Times are milliseconds of the caller's monotonic clock and are always passed in; there is no I/O here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from cloud_cluster.admission import DeviceLimits, Holdings, too_late
from cloud_cluster.backlog import Replica
from cloud_cluster.deadlines import Deadlines
from cloud_cluster.fairness import QUANTUM_MS
from cloud_cluster.model_queue import ModelQueue, ModelState
from cloud_cluster.work import Action, Fail, Released, Request, Send
from shared.errors import DeadlineError, OverloadedError, SutureError, UnavailableError

__all__ = ["Action", "DeviceLimits", "Dispatcher", "Fail", "ModelState", "Released", "Request", "Send"]

_MAX_SENDS = 2


class Dispatcher:
    """See the module.  ``max_queues`` holds the longest queue of each model, by model index.

    ``max_in_flight`` and ``max_in_flight_bytes`` hold for every device that is admitted without limits of
    its own.  ``first_id`` starts the request ids; a gateway that restarts must start elsewhere, so that a
    late answer to an earlier life matches nothing.
    """

    def __init__(
        self,
        max_queues: Sequence[int],
        max_in_flight: int,
        max_in_flight_bytes: int,
        first_id: int = 1,
        max_bytes: float = math.inf,
        quantum_ms: float = QUANTUM_MS,
    ) -> None:
        self._quantum_ms = quantum_ms
        self._models: dict[int, ModelQueue] = {}
        for index, max_queue in enumerate(max_queues):
            self.add_model(index, max_queue)
        self.limit(max_in_flight, max_in_flight_bytes, max_bytes)
        self._nbytes = 0
        self._ids = itertools.count(first_id)
        self._requests: dict[int, Request] = {}
        self._replicas: dict[bytes, Replica] = {}
        self._devices: dict[bytes, dict[int, Request]] = {}
        self._holdings: dict[bytes, Holdings] = {}
        self._deadlines = Deadlines()

    def limit(self, max_in_flight: int, max_in_flight_bytes: int, max_bytes: float) -> None:
        """Other limits from now on; what is beyond them already runs to its end."""
        self._limits = DeviceLimits(max_in_flight, max_in_flight_bytes)
        self._max_bytes = max_bytes

    @property
    def admitted_now(self) -> int:
        """Requests that were admitted and have not left."""
        return len(self._requests)

    @property
    def nbytes(self) -> int:
        """Of all their frames; never more than ``max_bytes``."""
        return self._nbytes

    # Models

    def add_model(self, index: int, max_queue: int) -> None:
        """Take requests and replicas of this index from now on, or change how many may wait."""
        model = self._models.get(index)
        if model is None:
            self._models[index] = ModelQueue(max_queue, self._quantum_ms)
        else:
            model.max_queue = max_queue

    def remove_model(self, index: int) -> None:
        """Forget an index once its last replica has left; what is there until then runs to its end."""
        self._models[index].retired = True
        self._forget_if_retired(index)

    def _forget_if_retired(self, index: int) -> None:
        if self._models[index].retired and not self._models[index].replicas:
            del self._models[index]

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
        account: bytes | None = None,
        limits: DeviceLimits | None = None,
    ) -> tuple[Request, list[Action]]:
        """Take a request, or refuse it at once: the first action is then its Fail.

        ``account`` is who limits and fairness count it for, the device itself unless given; ``limits`` are
        those of the account.

        A refusal is OverloadedError (the account's or the model's limit is reached, or the answer could not
        be there in time; with ``retry_after_ms``), RefusedError (it could never be), UnavailableError (no
        replica) or DeadlineError (the budget was spent on the way).  When the queue is full, a request that
        stands a turn ahead of the last one takes its place: that one's Fail is among the actions.
        """
        limits = limits or self._limits
        account = device if account is None else account
        request = Request(
            next(self._ids),
            device,
            account,
            model,
            nbytes,
            now_ms,
            deadline_ms,
            work_ms,
            limits.weight,
            body,
        )
        queue = self._models[model]
        refusal = self._refusal(request, queue, limits, now_ms)
        if refusal is not None:
            queue.refused += 1
            return request, [Fail(request, refusal)]
        actions: list[Action] = []
        if len(queue.waiting) >= queue.max_queue:
            actions.append(self._push_out(queue, now_ms))
        queue.admitted += 1
        self._requests[request.id] = request
        self._devices.setdefault(device, {})[request.id] = request
        holdings = self._holdings.setdefault(account, Holdings())
        holdings.requests += 1
        holdings.nbytes += nbytes
        self._nbytes += nbytes
        self._enqueue(request)
        actions += self._assign(queue, now_ms)
        return request, actions

    def _refusal(
        self, request: Request, queue: ModelQueue, limits: DeviceLimits, now_ms: float
    ) -> SutureError | None:
        left_ms = request.deadline_ms - now_ms
        if left_ms <= 0:
            return DeadlineError("the request's time budget was spent before it reached the gateway")
        if not queue.ready:
            queue.unserved += 1
            return UnavailableError("no replica of this model is ready; run it on the device meanwhile")
        refusal = self._holdings.get(request.account, Holdings()).refusal(request.nbytes, limits, 0.0)
        if refusal is not None:
            refusal.retry_after_ms = max(queue.wait_ms(now_ms), refusal.retry_after_ms)
            return refusal
        if self._nbytes + request.nbytes > self._max_bytes:
            wait_ms = max(queue.wait_ms(now_ms), 1.0)
            return OverloadedError(f"this gateway holds {self._nbytes} bytes, nearly all it may", wait_ms)
        if len(queue.waiting) >= queue.max_queue and not queue.waiting.is_ahead_of_last(request):
            wait_ms = max(queue.wait_ms(now_ms), 1.0)
            return OverloadedError(f"{len(queue.waiting)} requests already wait for this model", wait_ms)
        if math.isinf(left_ms):
            return None
        return too_late(*queue.predict_ms(request, now_ms), left_ms)

    def device_gone(self, device: bytes) -> None:
        """Drop what the device has queued; what already runs finishes for nobody."""
        for request_id in list(self._devices.get(device, ())):
            self.cancel(request_id)

    def cancel(self, request_id: int) -> None:
        """Nobody wants this answer any more; unknown ids are ignored, the request may have just left."""
        request = self._requests.get(request_id)
        if request is None:
            return
        if request.queued:
            self._models[request.model].waiting.remove(request)
            self._leave(request)
        else:
            request.abandoned = True

    # Replicas

    def replica_ready(self, replica: bytes, model: int, credits: int, now_ms: float) -> list[Action]:
        """A replica may be sent work; one that says so twice has lost what it held before."""
        actions = self.replica_gone(replica, now_ms) if replica in self._replicas else []
        queue = self._models[model]
        self._replicas[replica] = queue.replicas[replica] = Replica(model, credits, heard_ms=now_ms)
        queue.update(replica)
        return [*actions, *self._assign(queue, now_ms)]

    def credit(
        self,
        replica: bytes,
        credits: int,
        slowdown: float,
        now_ms: float,
        window: int | None = None,
        elsewhere_ms: float = 0.0,
    ) -> list[Action]:
        """Widen the replica's window, or set it, and note how slow it is against its profile and how much
        work of other gateways it holds."""
        state = self._replicas.get(replica)
        if state is None:
            return []
        state.on_credit(credits, slowdown, window, elsewhere_ms, now_ms)
        queue = self._models[state.model]
        queue.update(replica)
        return [*self._strand(queue), *self._assign(queue, now_ms)]

    def replica_heard(self, replica: bytes, now_ms: float) -> None:
        """It is there, and what it said before still holds."""
        state = self._replicas.get(replica)
        if state is not None:
            state.heard_ms = now_ms

    def replica_draining(self, replica: bytes, now_ms: float) -> list[Action]:
        """Send it nothing more; Released follows once it has answered what it holds."""
        state = self._replicas.get(replica)
        if state is None:
            return [Released(replica)]
        state.draining = True
        queue = self._models[state.model]
        queue.update(replica)
        return [*self._strand(queue), *self._release_if_drained(replica, state)]

    def replica_gone(self, replica: bytes, now_ms: float) -> list[Action]:
        """Queue what it held once more, where there is budget and another replica; else fail it."""
        state = self._replicas.pop(replica, None)
        if state is None:
            return []
        queue = self._models[state.model]
        queue.drop(replica)
        actions: list[Action] = []
        for request in state.in_flight.values():
            request.replica = None
            if request.abandoned:
                self._leave(request)
            elif request.deadline_ms <= now_ms:
                late = DeadlineError("the replica was lost, then the time ran out")
                actions.append(self._fail(request, late))
            elif request.sends >= _MAX_SENDS:
                lost = UnavailableError("two replicas were lost under this request")
                actions.append(self._fail(request, lost))
            else:
                self._enqueue(request)
        actions += [*self._strand(queue), *self._assign(queue, now_ms)]
        self._forget_if_retired(state.model)
        return actions

    def finished(
        self,
        replica: bytes,
        request_id: int,
        now_ms: float,
        busy_ms: float = 0.0,
        batch_requests: int = 1,
    ) -> tuple[Request | None, list[Action]]:
        """The replica's answer came.  None when it answers nothing that it was asked in this session.

        ``busy_ms`` is the request's share of the replica's time, 0 when unknown, ``batch_requests`` how many
        were computed together: from these the replica's pace is learned.
        """
        state = self._replicas.get(replica)
        request = state.on_answer(request_id, busy_ms, batch_requests, now_ms) if state else None
        if state is None or request is None:
            return None, []
        self._leave(request)
        queue = self._models[state.model]
        queue.update(replica)
        return request, [*self._assign(queue, now_ms), *self._release_if_drained(replica, state)]

    # Time

    def next_deadline_ms(self) -> float:
        """When :meth:`expire` next has something to do; infinite when nothing queued has a budget."""
        return self._deadlines.next_ms()

    def expire(self, now_ms: float) -> list[Action]:
        """Fail whatever waits past its deadline."""
        actions: list[Action] = []
        while (request := self._deadlines.pop_due(now_ms)) is not None:
            self._models[request.model].waiting.remove(request)
            waited_ms = now_ms - request.arrived_ms
            error = DeadlineError(f"the time ran out after {waited_ms:.0f} ms in the queue")
            actions.append(self._fail(request, error))
        return actions

    def wait_ms(self, model: int, now_ms: float) -> float:
        """What a device that has nothing waiting would wait for a request without a budget."""
        return self._models[model].wait_ms(now_ms)

    def model_state(self, model: int, now_ms: float) -> ModelState:
        return self._models[model].state(now_ms)

    # The moves

    def _enqueue(self, request: Request) -> None:
        self._models[request.model].waiting.push(request)
        self._deadlines.add(request, len(self._requests))

    def _leave(self, request: Request) -> None:
        del self._requests[request.id]
        mine = self._devices[request.device]
        del mine[request.id]
        if not mine:
            del self._devices[request.device]
        holdings = self._holdings[request.account]
        holdings.requests -= 1
        holdings.nbytes -= request.nbytes
        self._nbytes -= request.nbytes
        if not holdings.requests:
            del self._holdings[request.account]

    def _fail(self, request: Request, error: SutureError) -> Fail:
        self._leave(request)
        return Fail(request, error)

    def _push_out(self, queue: ModelQueue, now_ms: float) -> Fail:
        last = queue.waiting.last
        queue.waiting.remove(last)
        wait_ms = max(queue.wait_ms(now_ms), 1.0)
        return self._fail(last, OverloadedError("a device that has less work here needed its place", wait_ms))

    def _assign(self, queue: ModelQueue, now_ms: float) -> Iterator[Action]:
        while queue.waiting and (name := queue.best(now_ms)) is not None:
            request, replica = queue.waiting.first, queue.replicas[name]
            takes_ms = replica.backlog_ms(now_ms) + request.work_ms * replica.slowdown
            if now_ms + takes_ms > request.deadline_ms or now_ms >= request.deadline_ms:
                queue.waiting.remove(request)
                yield self._fail(request, DeadlineError("after waiting in the queue it would be late"))
                continue
            queue.waiting.pop()
            request.sends += 1
            request.replica, request.sent_ms = name, now_ms
            replica.on_send(request, now_ms)
            queue.update(name)
            yield Send(request, name)

    def _strand(self, queue: ModelQueue) -> Iterator[Action]:
        """Without a replica left, waiting is of no use: the devices had better go on alone now."""
        while not queue.ready and queue.waiting:
            request = queue.waiting.first
            queue.waiting.remove(request)
            yield self._fail(request, UnavailableError("the last replica of this model has left"))

    def _release_if_drained(self, name: bytes, replica: Replica) -> list[Action]:
        if not replica.draining or replica.in_flight:
            return []
        del self._replicas[name]
        self._models[replica.model].drop(name)
        self._forget_if_retired(replica.model)
        return [Released(name)]
