"""The cloud of the simulated fleet: the gateway's own dispatcher and load meter, and the autoscaler's policy.

Nothing is sent anywhere: what gateway and replica add to a request is half of a measured hop before and
half of it behind the computation.  Replicas that are asked for take ``start_ms`` to come.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from itertools import accumulate

from bench.fleet_network import FleetNetwork
from bench.fleet_replica import Answer, Device, FleetReplica, Ticket
from bench.virtual_time import Timeline
from cloud_cluster.autoscale import Trend, desired_replicas, load_of
from cloud_cluster.curves import BatchCurves
from cloud_cluster.dispatch import Action, Dispatcher, Fail, ModelState, Request, Send
from cloud_cluster.load import LoadMeter, VersionLoad
from edge_agent.controller import Decision
from shared.config import AutoscaleConfig
from shared.errors import SutureError
from shared.plan.stages import POSITION, Stage
from shared.wire.messages import LoadReport

__all__ = ["CloudPlan", "FleetCloud", "Reports"]

_CREDITS, _MAX_QUEUE, _MAX_BATCH = 2, 256, 8
_PERIOD_MS = 100.0
_CHECKS_PER_PERIOD = 5
_POLICY_MS, _LOOK_BACK = 500.0, 4
_NOISE = 0.05


@dataclass(frozen=True, slots=True)
class CloudPlan:
    """``listeners`` share the load feed of a gateway, which spends a fixed number of bytes on all of them.

    ``autoscale`` is None for as many ``replicas`` all the time.  A saturated replica reaches the share
    ``of_torch`` of torch's own speed.
    """

    replicas: int
    hop_ms: float
    listeners: int = 0
    autoscale: AutoscaleConfig | None = None
    start_ms: float = 10_000.0
    of_torch: float = 1.0


class Reports:
    """The load feed as it was published, for whoever listens with whatever delay."""

    def __init__(self) -> None:
        self._moments: list[float] = []
        self._reports: list[LoadReport] = []

    def publish(self, report: LoadReport, now_ms: float) -> None:
        self._moments.append(now_ms)
        self._reports.append(report)

    def between(self, after_ms: float, until_ms: float, most: int | None) -> list[tuple[float, LoadReport]]:
        """Those published later than the one moment and not later than the other, in order, or of these the
        ``most`` newest."""
        last = bisect_right(self._moments, until_ms)
        first = bisect_right(self._moments, after_ms)
        if most is not None:
            first = max(first, last - most)
        return list(zip(self._moments[first:last], self._reports[first:last], strict=True))


class FleetCloud:
    """One gateway and its replicas.  ``errors`` counts refusals by the name of their error."""

    def __init__(self, network: FleetNetwork, plan: CloudPlan, time: Timeline, seed: int) -> None:
        self.reports = Reports()
        self.errors: dict[str, int] = {}
        self.feed_lost = False
        self.target = plan.replicas
        self._network = network
        self._plan = plan
        self._time = time
        self._draw = random.Random(seed)
        self._curves = BatchCurves.flat(network.profile.unit_ms)
        self._tail_ms = [0.0, *accumulate(reversed(network.profile.unit_ms))][::-1]
        self._dispatcher = Dispatcher([_MAX_QUEUE], max_in_flight=32, max_in_flight_bytes=2**26)
        self._meter = LoadMeter("gateway", _PERIOD_MS)
        self._replicas: dict[bytes, FleetReplica] = {}
        self._numbers = 0
        self._starting = 0
        self._leaving: set[bytes] = set()
        self._expiry_ms = math.inf
        self._trend: Trend | None = None
        self._records: deque[tuple[int, dict[bytes, tuple[float, int]]]] = deque(maxlen=_LOOK_BACK + 1)
        for _ in range(plan.replicas):
            self._add_replica()
        time.at(0.0, self._publish)
        time.at(_PERIOD_MS, self._beat)
        if plan.autoscale is not None:
            time.at(_POLICY_MS, self._scale)

    def state(self) -> ModelState:
        return self._dispatcher.model_state(0, self._time.now_ms)

    @property
    def starting(self) -> int:
        return self._starting

    # requests

    def infer(
        self,
        device: Device,
        identity: bytes,
        request_id: int,
        decision: Decision,
        span_ms: float,
        budget_ms: float,
        half_rtt_ms: float,
        downlink_bps: float,
    ) -> None:
        """The last byte of a device's request is here; the first came ``span_ms`` ago."""
        rows, row = decision.rows, decision.row
        ticket = Ticket(
            device=device,
            device_request_id=request_id,
            cut=decision.cut.index,
            span_ms=span_ms,
            decode_ms=float(rows.columns[POSITION[Stage.DECODE], row]),
            encode_ms=float(rows.columns[POSITION[Stage.RESULT_ENCODE], row]),
            half_rtt_ms=half_rtt_ms,
            downlink_ms=float(rows.result_bytes[row]) * 8000.0 / downlink_bps,
        )
        self._admit(identity, decision.payload_bytes, budget_ms - span_ms, ticket)

    def infer_for_others(self, identity: bytes, nbytes: int, budget_ms: float) -> None:
        """A request of somebody who has no controller and leaves the whole network to the cloud."""
        self._admit(identity, nbytes, budget_ms, Ticket(None, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0))

    def _admit(self, identity: bytes, nbytes: int, left_ms: float, ticket: Ticket) -> None:
        now_ms = self._time.now_ms
        _, actions = self._dispatcher.admit(
            identity,
            0,
            nbytes=nbytes,
            deadline_ms=now_ms + left_ms,
            work_ms=self._tail_ms[ticket.cut],
            body=ticket,
            now_ms=now_ms,
        )
        self._apply(actions)

    def _finished(
        self, replica: bytes, request: Request, outcome: Answer | SutureError, busy_ms: float, batch: int
    ) -> None:
        half_ms = self._plan.hop_ms / 2
        self._time.after(half_ms, self._on_result, replica, request, outcome, busy_ms, batch)

    def _on_result(
        self, replica: bytes, request: Request, outcome: Answer | SutureError, busy_ms: float, batch: int
    ) -> None:
        now_ms = self._time.now_ms
        done, actions = self._dispatcher.finished(replica, request.id, now_ms, busy_ms, batch)
        if done is not None:
            self._meter.on_answer(0, batch)
            self._reply(done, outcome)
        self._apply(actions)

    def _reply(self, request: Request, outcome: Answer | SutureError) -> None:
        ticket = request.body
        assert isinstance(ticket, Ticket)
        if isinstance(outcome, SutureError):
            name = type(outcome).__name__
            self.errors[name] = self.errors.get(name, 0) + 1
        if ticket.device is None:
            return
        if isinstance(outcome, SutureError):
            self._time.after(ticket.half_rtt_ms, ticket.device.refused, ticket.device_request_id, outcome)
        else:
            back_ms = ticket.half_rtt_ms + ticket.downlink_ms
            self._time.after(back_ms, ticket.device.answered, ticket.device_request_id, outcome)

    def _apply(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                replica = self._replicas[action.replica]
                self._time.after(self._plan.hop_ms / 2, replica.take, action.request)
            elif isinstance(action, Fail):
                self._reply(action.request, action.error)
            else:
                del self._replicas[action.replica]
                self._leaving.discard(action.replica)
        due_ms = self._dispatcher.next_deadline_ms()
        if due_ms < self._expiry_ms:
            self._expiry_ms = due_ms
            self._time.at(due_ms, self._expire, due_ms)

    def _expire(self, due_ms: float) -> None:
        if due_ms == self._expiry_ms:
            self._expiry_ms = math.inf
            self._apply(self._dispatcher.expire(self._time.now_ms))

    # replicas

    def _add_replica(self) -> None:
        name = f"replica-{self._numbers}".encode()
        self._numbers += 1
        self._replicas[name] = FleetReplica(
            name,
            self._curves,
            _MAX_BATCH,
            self._time,
            self._about,
            1.0 / self._plan.of_torch - 1.0,
            self._finished,
        )
        self._apply(self._dispatcher.replica_ready(name, 0, _CREDITS, self._time.now_ms))

    def _started(self) -> None:
        self._starting -= 1
        if len(self._replicas) - len(self._leaving) < self.target:
            self._add_replica()

    def _beat(self) -> None:
        for name, replica in list(self._replicas.items()):
            self._apply(self._dispatcher.credit(name, 0, replica.slowdown, self._time.now_ms))
        self._time.after(_PERIOD_MS, self._beat)

    def _about(self, duration_ms: float) -> float:
        return duration_ms * max(0.5, 1.0 + _NOISE * self._draw.gauss(0.0, 1.0))

    def _publish(self) -> None:
        now_ms, listeners = self._time.now_ms, self._plan.listeners
        load = VersionLoad(0, self._network.name, self.state(), target=self.target, starting=self._starting)
        if not self.feed_lost and self._meter.due_ms([load], listeners) <= now_ms:
            self.reports.publish(self._meter.report([load], now_ms, listeners), now_ms)
        self._time.after(_PERIOD_MS / _CHECKS_PER_PERIOD, self._publish)

    def _scale(self) -> None:
        """As Serve calls the policy: on what the replicas recorded over the last two seconds."""
        assert self._plan.autoscale is not None
        state = self.state()
        totals = {name: (each.busy_ms, each.done) for name, each in self._replicas.items()}
        self._records.append((state.admitted + state.refused, totals))
        arrived_before, before = self._records[0]
        seconds = (len(self._records) - 1) * _POLICY_MS / 1e3
        if seconds:
            stats = [
                {
                    "busy": (busy_ms - before[name][0]) / seconds / 1e3,
                    "finished_per_s": (done - before[name][1]) / seconds,
                    "arriving_per_s": (state.admitted + state.refused - arrived_before) / seconds,
                    "wait_ms": state.wait_ms,
                }
                for name, (busy_ms, done) in totals.items()
                if name in before and name not in self._leaving
            ]
            now_s = self._time.now_ms / 1e3
            self.target, self._trend = desired_replicas(
                load_of(stats), self.target, self._plan.autoscale, self._trend, now_s
            )
            self._follow_target()
        self._time.after(_POLICY_MS, self._scale)

    def _follow_target(self) -> None:
        staying = [name for name in self._replicas if name not in self._leaving]
        for _ in range(self.target - len(staying) - self._starting):
            self._starting += 1
            self._time.after(self._plan.start_ms, self._started)
        for name in staying[self.target :]:
            self._leaving.add(name)
            self._apply(self._dispatcher.replica_draining(name, self._time.now_ms))
