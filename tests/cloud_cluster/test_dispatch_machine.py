"""The dispatcher under whatever may happen to it, in any order: a machine that keeps books of its own."""

from __future__ import annotations

import math

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloud_cluster.admission import DeviceLimits
from cloud_cluster.dispatch import Action, Dispatcher, Fail, Released, Request, Send
from shared.errors import DeadlineError, OverloadedError, RefusedError, UnavailableError

REPLICAS = (b"r1", b"r2", b"r3", b"r4")
# Two devices with one key, one with another, one without.
ACCOUNTS: dict[bytes, bytes | None] = {b"one": b"shared", b"two": b"shared", b"three": b"own", b"four": None}
WEIGHTS = {b"shared": 1.0, b"own": 3.0}
QUANTUM_MS = 10.0
MOST_LABELS = 3

devices = st.sampled_from(sorted(ACCOUNTS))
replicas = st.sampled_from(REPLICAS)


class DispatcherMachine(RuleBasedStateMachine):
    """Whatever happens: every admitted request leaves exactly once, in the order of the queue, within every
    limit, and no replica holds too much."""

    @initialize(
        max_queue=st.integers(1, 4), max_in_flight=st.integers(1, 6), max_bytes=st.integers(500, 4000)
    )
    def build(self, max_queue: int, max_in_flight: int, max_bytes: int) -> None:
        self.max_in_flight = max_in_flight
        self.max_bytes = max_bytes
        self.core = Dispatcher([max_queue] * 2, max_in_flight, 1000, 1, max_bytes, QUANTUM_MS)
        self.now_ms = 0.0
        self.open: dict[int, Request] = {}
        self.left: set[int] = set()
        self.held: dict[bytes, set[int]] = {}
        self.window: dict[bytes, int] = {}
        self.serves: dict[bytes, int] = {}
        self.draining: set[bytes] = set()
        self.max_queues = {0: max_queue, 1: max_queue}
        self.retired: set[int] = set()
        self.next_model = 2
        self.admitted = {0: 0, 1: 0}
        self.refused = {0: 0, 1: 0}
        for model, replica in enumerate(REPLICAS[:2]):
            self.held[replica], self.window[replica], self.serves[replica] = set(), 2, model
            assert self.core.replica_ready(replica, model, 2, 0.0) == []

    # What the machine knows

    def leave(self, request_id: int) -> None:
        assert request_id not in self.left
        self.open.pop(request_id)
        self.left.add(request_id)

    def take(self, actions: list[Action]) -> None:
        sent = [action.request for action in actions if isinstance(action, Send)]
        for action in actions:
            if isinstance(action, Send):
                request, replica = action.request, action.replica
                assert request.deadline_ms > self.now_ms
                assert replica not in self.draining
                assert self.serves[replica] == request.model
                assert request.id in self.open
                self.held[replica].add(request.id)
                assert len(self.held[replica]) <= self.window[replica]
            elif isinstance(action, Fail):
                self.leave(action.request.id)
            else:
                self.forget(action)
        for request in sent:
            for waiting in self.waiting(request.model):
                assert place(request) < place(waiting), "what is sent stood before what waits"
        self.prune_models()

    def forget(self, action: Released) -> None:
        assert not self.held.pop(action.replica)
        self.draining.discard(action.replica)
        del self.serves[action.replica]

    def waiting(self, model: int) -> list[Request]:
        return [each for each in self.open.values() if each.queued and each.model == model]

    def account(self, request: Request) -> bytes:
        return ACCOUNTS[request.device] or request.device

    def prune_models(self) -> None:
        """A model that is not wanted any more goes with its last replica."""
        for model in list(self.retired):
            if model not in self.serves.values():
                self.retired.discard(model)
                del self.max_queues[model]

    def reconcile(self) -> None:
        """Abandoned work on a lost replica leaves without a word."""
        held = set().union(*self.held.values()) if self.held else set()
        for request in list(self.open.values()):
            if request.abandoned and request.id not in held:
                self.leave(request.id)

    # Devices

    @rule(
        device=devices,
        data=st.data(),
        count=st.integers(1, 4),
        nbytes=st.integers(1, 400),
        budget_ms=st.one_of(st.just(math.inf), st.floats(0, 200)),
        work_ms=st.floats(0, 30),
    )
    def admit(
        self,
        device: bytes,
        data: st.DataObject,
        count: int,
        nbytes: int,
        budget_ms: float,
        work_ms: float,
    ) -> None:
        served = sorted(set(self.max_queues) - self.retired)
        if served:
            model = data.draw(st.sampled_from(served))
            for _ in range(count):
                self.admit_one(device, model, nbytes, budget_ms, work_ms)

    @rule(greedy=devices, other=devices, data=st.data(), work_ms=st.floats(10, 30))
    def crowd(self, greedy: bytes, other: bytes, data: st.DataObject, work_ms: float) -> None:
        """One device asks for more than fits, then another one asks."""
        served = sorted(set(self.max_queues) - self.retired)
        if served:
            model = data.draw(st.sampled_from(served))
            for _ in range(self.max_in_flight):
                self.admit_one(greedy, model, 10, math.inf, work_ms)
            self.admit_one(other, model, 10, math.inf, 1.0)

    def admit_one(self, device: bytes, model: int, nbytes: int, budget_ms: float, work_ms: float) -> None:
        account = ACCOUNTS[device]
        limits = DeviceLimits(self.max_in_flight, 1000, WEIGHTS[account]) if account else None
        full = len(self.waiting(model)) >= self.max_queues[model]
        request, actions = self.core.admit(
            device,
            model,
            nbytes=nbytes,
            deadline_ms=self.now_ms + budget_ms,
            work_ms=work_ms,
            body=None,
            now_ms=self.now_ms,
            account=account,
            limits=limits,
        )
        self.open[request.id] = request
        first = actions[0] if actions else None
        if isinstance(first, Fail) and first.request is request:
            refusals = OverloadedError | RefusedError | DeadlineError | UnavailableError
            assert isinstance(first.error, refusals)
            assert len(actions) == 1
            self.refused[model] += 1
        else:
            self.admitted[model] += 1
            if full:
                assert isinstance(first, Fail)
                assert isinstance(first.error, OverloadedError)
                assert int(first.request.start) > int(request.start), "a turn ahead, or it would not go"
                event("pushed out")
        self.take(actions)
        if request.id in self.open:
            mine = [each for each in self.open.values() if self.account(each) == self.account(request)]
            assert len(mine) <= self.max_in_flight
            assert sum(each.nbytes for each in mine) <= 1000
            assert self.core.nbytes <= self.max_bytes

    @rule(device=devices)
    def lose_device(self, device: bytes) -> None:
        queued = [request.id for request in self.open.values() if request.device == device and request.queued]
        self.core.device_gone(device)
        for request_id in queued:
            self.leave(request_id)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.open:
            self.core.cancel(10**9)
            return
        request = self.open[data.draw(st.sampled_from(sorted(self.open)))]
        queued = request.queued
        self.core.cancel(request.id)
        if queued:
            self.leave(request.id)

    # Replicas

    @rule(replica=replicas, data=st.data(), credits=st.integers(0, 3))
    def ready(self, replica: bytes, data: st.DataObject, credits: int) -> None:
        served = sorted(set(self.max_queues) - self.retired)
        if not served:
            return
        # One that says so again has lost what it held, and may hold another network than before.
        self.take_from(replica)
        model = data.draw(st.sampled_from(served))
        before = self.serves.pop(replica, None)
        self.held[replica], self.window[replica], self.serves[replica] = set(), credits, model
        if before is not None:
            event("ready again")
        self.take(self.core.replica_ready(replica, model, credits, self.now_ms))
        self.reconcile()

    @rule(replica=replicas, credits=st.integers(0, 2), slowdown=st.floats(0.2, 5), elsewhere=st.floats(0, 50))
    def credit(self, replica: bytes, credits: int, slowdown: float, elsewhere: float) -> None:
        if replica in self.held:
            self.window[replica] += credits
        self.take(self.core.credit(replica, credits, slowdown, self.now_ms, None, elsewhere))

    @rule(replica=replicas, window=st.integers(0, 4))
    def set_window(self, replica: bytes, window: int) -> None:
        if replica in self.held:
            if window < len(self.held[replica]):
                event("narrowed below what is there")
            self.window[replica] = window
        self.take(self.core.credit(replica, 0, 1.0, self.now_ms, window))

    @rule(replica=replicas)
    def drain(self, replica: bytes) -> None:
        if replica in self.held:
            self.draining.add(replica)
            self.take(self.core.replica_draining(replica, self.now_ms))
        else:
            assert self.core.replica_draining(replica, self.now_ms) == [Released(replica)]

    @rule(replica=replicas)
    def lose(self, replica: bytes) -> None:
        self.take_from(replica)
        self.serves.pop(replica, None)
        self.take(self.core.replica_gone(replica, self.now_ms))
        self.reconcile()

    def take_from(self, replica: bytes) -> None:
        self.held.pop(replica, None)
        self.draining.discard(replica)

    @rule(data=st.data(), replica=replicas, busy_ms=st.floats(0, 60), together=st.integers(1, 4))
    def finish(self, data: st.DataObject, replica: bytes, busy_ms: float, together: int) -> None:
        held = sorted(self.held.get(replica, ()))
        if not held:
            assert self.core.finished(replica, 10**9, self.now_ms) == (None, [])
            return
        request_id = data.draw(st.sampled_from(held))
        self.held[replica].remove(request_id)
        request, actions = self.core.finished(replica, request_id, self.now_ms, busy_ms, together)
        assert request is not None
        assert request.id == request_id
        self.leave(request_id)
        self.take(actions)

    # Networks and limits

    @precondition(lambda self: len(self.max_queues) < MOST_LABELS)
    @rule(max_queue=st.integers(1, 4))
    def add_model(self, max_queue: int) -> None:
        self.core.add_model(self.next_model, max_queue)
        self.max_queues[self.next_model] = max_queue
        self.admitted[self.next_model] = self.refused[self.next_model] = 0
        self.next_model += 1

    @rule(data=st.data(), max_queue=st.integers(1, 4))
    def resize_model(self, data: st.DataObject, max_queue: int) -> None:
        served = sorted(set(self.max_queues) - self.retired)
        if served:
            model = data.draw(st.sampled_from(served))
            self.core.add_model(model, max_queue)
            self.max_queues[model] = max_queue

    @rule(data=st.data())
    def remove_model(self, data: st.DataObject) -> None:
        served = sorted(set(self.max_queues) - self.retired)
        if served:
            model = data.draw(st.sampled_from(served))
            self.core.remove_model(model)
            self.retired.add(model)
            self.prune_models()

    @rule(max_in_flight=st.integers(1, 6), max_bytes=st.integers(500, 4000))
    def limit(self, max_in_flight: int, max_bytes: int) -> None:
        self.core.limit(max_in_flight, 1000, max_bytes)
        self.max_in_flight, self.max_bytes = max_in_flight, max_bytes

    # Time

    @rule(step_ms=st.floats(0, 40))
    def wait(self, step_ms: float) -> None:
        self.now_ms += step_ms
        self.take(self.core.expire(self.now_ms))
        assert self.core.next_deadline_ms() > self.now_ms

    # What always holds

    @invariant()
    def the_books_agree(self) -> None:
        assert self.core.admitted_now == len(self.open)
        assert self.core.nbytes == sum(request.nbytes for request in self.open.values())
        held = set().union(*self.held.values()) if self.held else set()
        queued = {request.id for request in self.open.values() if request.queued}
        assert held | queued == set(self.open)
        assert not held & queued
        for model in self.max_queues:
            state = self.core.model_state(model, self.now_ms)
            mine = [replica for replica, serves in self.serves.items() if serves == model]
            assert state.queued == len(self.waiting(model))
            assert state.in_flight == sum(len(self.held[replica]) for replica in mine)
            assert (state.admitted, state.refused) == (self.admitted[model], self.refused[model])
            ready = [each for each in mine if self.window[each] > 0 and each not in self.draining]
            assert state.ready == len(ready)
            assert state.wait_ms >= 0
            assert math.isfinite(state.wait_ms)
            assert ready or not state.queued, "without a replica, waiting is of no use"

    @invariant()
    def nothing_waits_beside_a_free_credit(self) -> None:
        for replica, held in self.held.items():
            if replica not in self.draining and len(held) < self.window[replica]:
                assert not self.waiting(self.serves[replica])

    @invariant()
    def the_next_deadline_is_known(self) -> None:
        waiting = [request.deadline_ms for request in self.open.values() if request.queued]
        assert self.core.next_deadline_ms() == min(waiting, default=math.inf)


def place(request: Request) -> tuple[int, float, int]:
    """Where a request stands in its queue: by turns, then by deadline, then as it came."""
    return int(request.start), request.deadline_ms, request.id


TestDispatcherMachine = DispatcherMachine.TestCase
TestDispatcherMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
