"""The life of every request on the device, as a pure state machine.

Events go in with the time in milliseconds of one steady clock, actions come out; the shell
(:mod:`edge_agent.agent`) performs them and reports back.  Each submitted request ends in exactly one
:class:`Complete` or :class:`Fail` (or silently by :meth:`RequestTable.cancelled`), at its deadline at the
latest::

    submit ──▶ PREFIX ──▶ SENT ──▶ DECODING ──▶ Complete(CLOUD)
                 │         │ ▲ │       │ answer does not decode
                 │         ▼ │ │       ▼
                 │       MOVING│    gateway lost: to be sent again to another where that is sooner
                 │         │   ├──▶ RACING   guard: last moment at which the device still makes it
                 │         ▼   ▼      │      first answer wins, cloud gone: LOCAL
                 ├───────▶ LOCAL ◀────┘
                 │          ▼
                 └──────▶ Complete(DEVICE)            any state ──deadline──▶ Fail(DeadlineError)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edge_agent.actions import (
    Action,
    Complete,
    Decode,
    Fail,
    Fallback,
    FinishLocally,
    Phase,
    RunPrefix,
    Send,
    Source,
    StopLocal,
)
from edge_agent.entry import Counters, Entry, missed
from edge_agent.guard import Guard
from edge_agent.outstanding import Outstanding
from shared.errors import DeadlineError, OverloadedError, RefusedError, SutureError

__all__ = ["Counters", "RequestTable"]

_MOVING_PATIENCE = 3.0
"""How many times as long as expected a request waits for another gateway before the device finishes it."""


@dataclass(slots=True)
class RequestTable:
    """All requests of one agent.  Not thread-safe; times are absolute milliseconds of one steady clock.

    Events for a request that has ended are ignored: late answers and duplicates change nothing.
    """

    max_in_flight: int
    max_in_flight_bytes: int
    guard: Guard = field(default_factory=Guard)
    counters: Counters = field(default_factory=Counters)
    _entries: dict[int, Entry] = field(default_factory=dict)
    _held_bytes: int = 0
    _outstanding: Outstanding = field(default_factory=Outstanding)
    _online: bool = False
    _draining: bool = False
    _back_in_ms: float = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def held_bytes(self) -> int:
        """Bytes of inputs and cut tensors that live requests keep on the device."""
        return self._held_bytes

    @property
    def outstanding(self) -> int:
        """Requests that, as far as the device knows, occupy the gateway."""
        return len(self._outstanding)

    @property
    def outstanding_bytes(self) -> int:
        return self._outstanding.nbytes

    def phase(self, request_id: int) -> Phase | None:
        """None when there is no such request, or no longer."""
        entry = self._entries.get(request_id)
        return entry.phase if entry else None

    # events from the application

    def submit(
        self,
        request_id: int,
        *,
        now_ms: float,
        deadline_ms: float,
        on_device: bool,
        rest_ms: float,
        answer_ms: float,
        held_bytes: int,
        spread: float = 1.0,
    ) -> list[Action]:
        """Admit a request, or raise OverloadedError at once.

        ``on_device`` when the plan ships nothing; ``rest_ms`` predicts the device's time above the cut,
        ``answer_ms`` the time from sending to the answer; ``held_bytes`` is the size of the inputs.
        For ``spread`` times ``rest_ms`` the guard keeps the device free.
        """
        if self._draining:
            raise RefusedError(
                "the agent is stopping; send the request again when it is back", self._back_in_ms
            )
        if len(self._entries) >= self.max_in_flight:
            self.counters.overloaded += 1
            raise OverloadedError(
                f"{len(self._entries)} requests are in flight, which is all that max_in_flight allows; "
                "await some of them first, or raise max_in_flight in the agent's configuration"
            )
        if self._entries and self._held_bytes + held_bytes > self.max_in_flight_bytes:
            self.counters.overloaded += 1
            raise OverloadedError(
                f"requests in flight hold {self._held_bytes:,} bytes and this one adds {held_bytes:,}, over "
                f"the {self.max_in_flight_bytes:,} of max_in_flight_bytes; await some of them first"
            )
        if now_ms >= deadline_ms:
            raise DeadlineError("the deadline had passed before the request began; give a later one")
        self.counters.submitted += 1
        self._entries[request_id] = Entry(
            request_id, deadline_ms, on_device, rest_ms, answer_ms, held_bytes, spread
        )
        self._held_bytes += held_bytes
        return [RunPrefix(request_id)]

    def cancelled(self, request_id: int) -> bool:
        """The application no longer wants it; True if it was alive.  All its work is to be stopped."""
        if request_id not in self._entries:
            return False
        self._end(request_id)
        self.counters.cancelled += 1
        return True

    def drain(self, back_in_ms: float = 0.0) -> None:
        """Admit nothing more; callers are told to try again after so long."""
        self._draining = True
        self._back_in_ms = back_in_ms

    # events from the worker

    def prefix_done(self, request_id: int, *, now_ms: float, payload_bytes: int) -> list[Action]:
        """``payload_bytes`` is what would be sent; 0 when the device ran the whole network."""
        entry = self._entries.get(request_id)
        if entry is None or entry.phase is not Phase.PREFIX:
            return []
        if entry.on_device:
            return self._complete(entry, Source.DEVICE)
        if now_ms >= entry.deadline_ms:
            return self._fail(entry, missed(entry))
        self._held_bytes += payload_bytes
        entry.held_bytes += payload_bytes
        entry.payload_bytes = payload_bytes
        if not self._online:
            return self._finish_locally(entry, Fallback.UNREACHABLE)
        return self._send(entry, now_ms)

    def prefix_failed(self, request_id: int, error: SutureError) -> list[Action]:
        entry = self._entries.get(request_id)
        return self._fail(entry, error) if entry else []

    def local_done(self, request_id: int) -> list[Action]:
        """In a race the device's whole answer beats an answer that is still being decoded."""
        entry = self._entries.get(request_id)
        if entry is None or entry.phase not in (Phase.LOCAL, Phase.RACING, Phase.DECODING):
            return []
        return self._complete(entry, Source.DEVICE)

    def local_failed(self, request_id: int, error: SutureError) -> list[Action]:
        """Without a cloud answer to hope for, the request ends with ``error``."""
        entry = self._entries.get(request_id)
        if entry is None:
            return []
        entry.finishing = False
        if entry.phase not in (Phase.LOCAL, Phase.RACING):
            return []
        if entry.phase is Phase.RACING:
            entry.phase = Phase.SENT
            entry.guarded = False
            return []
        return self._fail(entry, error)

    def decode_done(self, request_id: int) -> list[Action]:
        entry = self._entries.get(request_id)
        if entry is None or entry.phase is not Phase.DECODING:
            return []
        entry.fallback = None
        return self._complete(entry, Source.CLOUD)

    def decode_failed(self, request_id: int) -> list[Action]:
        entry = self._entries.get(request_id)
        if entry is None or entry.phase is not Phase.DECODING:
            return []
        if entry.finishing:
            entry.phase = Phase.LOCAL
            return []
        return self._finish_locally(entry, Fallback.UNDECODABLE)

    # events from the link

    def connected(self, now_ms: float, *, max_in_flight: int, max_in_flight_bytes: int) -> list[Action]:
        """A gateway takes work, within its limits for one device."""
        self._online = True
        self._outstanding.max_count = max_in_flight
        self._outstanding.max_bytes = max_in_flight_bytes
        actions: list[Action] = []
        for entry in self._in(Phase.MOVING):
            actions += self._send(entry, now_ms)
        return actions

    def disconnected(
        self, now_ms: float, moves_in_ms: float | None = None, worker_wait_ms: float = 0.0
    ) -> list[Action]:
        """No answer will come any more for anything that was sent.

        The device finishes it, except what another gateway that is expected to take work in
        ``moves_in_ms`` would answer sooner, and in time; None when there is no such gateway.
        """
        self._online = False
        self._outstanding.clear()
        actions: list[Action] = []
        wait_ms = worker_wait_ms
        for entry in self._in(Phase.RACING):
            entry.phase = Phase.LOCAL
        for entry in sorted(self._in(Phase.SENT), key=lambda entry: entry.deadline_ms):
            elsewhere_ms = math.inf if moves_in_ms is None else moves_in_ms + entry.answer_ms
            if elsewhere_ms < wait_ms + entry.rest_ms and now_ms + elsewhere_ms < entry.deadline_ms:
                assert moves_in_ms is not None
                entry.phase = Phase.MOVING
                entry.moving_until_ms = now_ms + moves_in_ms * _MOVING_PATIENCE
            else:
                wait_ms += entry.rest_ms
                actions += self._finish_locally(entry, Fallback.UNREACHABLE)
        return actions

    def send_failed(self, request_id: int) -> list[Action]:
        """The link took nothing: the payload never left."""
        self._outstanding.settle(request_id)
        entry = self._entries.get(request_id)
        if entry is None or entry.phase is not Phase.SENT:
            return []
        return self._finish_locally(entry, Fallback.LINK_FULL)

    def answered(self, request_id: int, *, needs_worker: bool = True) -> list[Action]:
        """A result has arrived.  Where its decoding needs the worker, that is taken from a local completion
        that races; else the race goes on until it has decoded, since an answer that does not is none."""
        self._outstanding.settle(request_id)
        entry = self._entries.get(request_id)
        if entry is None or entry.phase not in (Phase.SENT, Phase.RACING):
            self.counters.late_answers += 1
            return []
        entry.phase = Phase.DECODING
        decode = Decode(request_id)
        if entry.finishing and needs_worker:
            entry.finishing = False
            return [StopLocal(request_id), decode]
        return [decode]

    def refused(self, request_id: int, error: SutureError) -> list[Action]:
        """The gateway or the replica answered with an error."""
        self._outstanding.settle(request_id)
        entry = self._entries.get(request_id)
        if entry is None or entry.phase not in (Phase.SENT, Phase.RACING):
            self.counters.late_answers += 1
            return []
        if entry.phase is Phase.RACING:
            entry.phase = Phase.LOCAL
            return []
        reason = Fallback.REFUSED if isinstance(error, RefusedError | DeadlineError) else Fallback.CLOUD_ERROR
        return self._finish_locally(entry, reason)

    # time

    def tick(self, now_ms: float, worker_wait_ms: float = 0.0) -> list[Action]:
        """Deadlines and guards that are due; ``worker_wait_ms`` is the work queued on the device."""
        self._outstanding.expire(now_ms)
        actions: list[Action] = []
        for entry in [entry for entry in self._entries.values() if now_ms >= entry.deadline_ms]:
            actions += self._fail(entry, missed(entry))
        for entry in self._in(Phase.MOVING):
            if now_ms >= entry.moving_until_ms:
                actions += self._finish_locally(entry, Fallback.UNREACHABLE)
        wait_ms = worker_wait_ms
        for start_ms, entry in self.guard.latest_starts(self._guarded(), now_ms, worker_wait_ms):
            if now_ms < start_ms:
                continue
            if now_ms + wait_ms + entry.rest_ms > entry.deadline_ms:
                entry.guarded = False  # only the cloud can still make it
                continue
            wait_ms += entry.rest_ms
            actions += self._race(entry)
        return actions

    def make_way(self, request_id: int, now_ms: float, worker_wait_ms: float = 0.0) -> list[Action]:
        """To be asked before the device begins to finish this request: what still waits for the cloud, has a
        nearer deadline and could not be finished in time behind it, is begun before it."""
        first = self._entries[request_id]
        actions: list[Action] = []
        wait_ms = worker_wait_ms
        behind = self.guard.latest_starts(self._guarded(), now_ms, worker_wait_ms + first.rest_ms)
        for start_ms, entry in behind:
            done_ms = now_ms + wait_ms + entry.rest_ms
            late = now_ms >= start_ms and entry.deadline_ms < first.deadline_ms
            if late and done_ms <= entry.deadline_ms and done_ms + first.rest_ms <= first.deadline_ms:
                wait_ms += entry.rest_ms
                actions += self._race(entry)
        return actions

    def next_tick_ms(self, now_ms: float, worker_wait_ms: float = 0.0) -> float | None:
        """When :meth:`tick` has something to do if no event comes before; None when never."""
        guarded = self._guarded()
        moments = [entry.deadline_ms for entry in self._entries.values()]
        moments += [entry.moving_until_ms for entry in self._in(Phase.MOVING)]
        moments += [start_ms for start_ms, _ in self.guard.latest_starts(guarded, now_ms, worker_wait_ms)]
        moments += [moment for entry in guarded if (moment := self.guard.overdue_at_ms(entry)) > now_ms]
        return min(moments, default=None)

    def _guarded(self) -> list[Entry]:
        return [
            entry
            for entry in self._entries.values()
            if entry.phase in (Phase.SENT, Phase.MOVING) and entry.guarded
        ]

    def _in(self, phase: Phase) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.phase is phase]

    # transitions

    def _race(self, entry: Entry) -> list[Action]:
        """The device begins what the cloud may still answer."""
        if entry.phase is Phase.MOVING:
            return self._finish_locally(entry, Fallback.UNREACHABLE)
        actions = self._finish_locally(entry, Fallback.LATE)
        entry.phase = Phase.RACING
        return actions

    def _send(self, entry: Entry, now_ms: float) -> list[Action]:
        if not self._outstanding.has_room(entry.payload_bytes, now_ms):
            return self._finish_locally(entry, Fallback.LINK_FULL)
        entry.phase = Phase.SENT
        entry.sent_ms = now_ms
        self._outstanding.add(entry.request_id, entry.payload_bytes, entry.deadline_ms)
        return [Send(entry.request_id, max(entry.deadline_ms - now_ms, 0.0))]

    def _finish_locally(self, entry: Entry, reason: Fallback) -> list[Action]:
        entry.phase = Phase.LOCAL
        entry.finishing = True
        entry.fallback = reason
        self.counters.local_completions += 1
        return [FinishLocally(entry.request_id)]

    def _complete(self, entry: Entry, source: Source) -> list[Action]:
        if source is Source.CLOUD:
            self.counters.completed_by_cloud += 1
        else:
            self.counters.completed_by_device += 1
        self._end(entry.request_id)
        return [Complete(entry.request_id, source, entry.fallback)]

    def _fail(self, entry: Entry, error: SutureError) -> list[Action]:
        self.counters.failed += 1
        self._end(entry.request_id)
        return [Fail(entry.request_id, error)]

    def _end(self, request_id: int) -> None:
        self._held_bytes -= self._entries.pop(request_id).held_bytes
