"""A device of the simulated fleet: the agent's own controller and request table, with virtual time around.

What the agent's pipeline does with torch, threads and sockets, this does by arithmetic: one worker that
runs prefixes, decodings and local completions in turn, and one uplink that sends one payload after the
other.  What the device knows it learns from the same events, except that load reports reach the
controller when it is to decide, all of them in order or, in a large fleet, only the last few.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.fleet_cloud import FleetCloud
from bench.fleet_network import FleetNetwork
from bench.fleet_replica import Answer
from bench.virtual_time import Timeline
from edge_agent.actions import (
    Action,
    Complete,
    Decode,
    Fail,
    FinishLocally,
    RunPrefix,
    Send,
    StopLocal,
)
from edge_agent.controller import Controller, Decision
from edge_agent.requests import RequestTable
from shared.config import CloudLinkConfig
from shared.errors import RefusedError, SutureError
from shared.plan.stages import Stage
from shared.wire.messages import Limits, ModelCard

__all__ = ["Device", "DeviceClass", "Outcome", "Prototypes"]

_NOISE = 0.05
"""Deviation of every duration, as a share of it."""


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """``factor`` times slower than the machine of the bench; uplinks are log-normal around the median."""

    name: str
    share: float
    factor: float
    uplink_mbps: float
    uplink_sigma: float
    rtt_ms: float
    deadline_ms: float


@dataclass(slots=True)
class Outcome:
    """What became of a request; ``cut`` and ``remote`` are what was decided at its start."""

    submitted_ms: float
    device_class: int
    cut: int
    remote: bool
    latency_ms: float
    by_cloud: bool
    missed: bool
    fallback: str


class Prototypes:
    """One connected controller for each class of devices, from which every device of it takes a copy.

    The copies share what the network is and costs (graph, profile, rows), which nothing ever changes.
    """

    def __init__(
        self, network: FleetNetwork, card: ModelCard, classes: Sequence[DeviceClass], patience_ms: float
    ) -> None:
        self.network = network
        self.card = card
        self._made: dict[str, tuple[Controller, dict[int, Any]]] = {}
        for each in classes:
            link = CloudLinkConfig(assumed_uplink_mbps=each.uplink_mbps, assumed_rtt_ms=each.rtt_ms)
            controller = Controller(link, log_length=1, patience_ms=patience_ms, seed=0)
            profile = network.profile.stretched(each.factor)
            controller.add_model(network.name, network.graph, profile, 0.0)
            controller.on_limits(Limits(), 0.0)
            controller.on_card(card, 0.0)
            controller.on_rtt(each.rtt_ms, 0.0)
            rows = controller.rows(network.name)
            fixed = [network.graph, profile, rows, *rows.cuts]
            self._made[each.name] = (controller, {id(thing): thing for thing in fixed})

    def controller(self, device_class: DeviceClass, seed: int) -> Controller:
        prototype, shared = self._made[device_class.name]
        made = copy.deepcopy(prototype, dict(shared))
        made.reseed(seed)
        return made


@dataclass(slots=True)
class _Live:
    """One request while it lives, as :class:`edge_agent.accounting.Request`."""

    decision: Decision
    started_ms: float
    wait_ms: float = 0.0
    device_ms: float = 0.0
    encode_ms: float = 0.0
    sent_ms: float = 0.0
    queued_bytes: int = 0
    answered_ms: float = 0.0
    answer: Answer | None = None
    decode_ms: float = 0.0
    local_start_ms: float = 0.0
    local_end_ms: float = -1.0


class Device:
    """``uplink`` is the factor on all uplinks at this moment; ``finished`` takes every outcome.

    Of the load reports before a decision the last ``reports`` reach the controller, None for all.
    """

    __slots__ = (
        "_cloud",
        "_controller",
        "_damped",
        "_deadline_ms",
        "_draw",
        "_finished",
        "_late",
        "_live",
        "_name",
        "_next_id",
        "_reported_ms",
        "_reports",
        "_table",
        "_time",
        "_timer",
        "_uplink",
        "_uplink_free_ms",
        "_worker_free_ms",
        "class_index",
        "identity",
        "rtt_ms",
        "uplink_bps",
    )

    def __init__(
        self,
        number: int,
        class_index: int,
        device_class: DeviceClass,
        controller: Controller,
        network: str,
        time: Timeline,
        cloud: FleetCloud,
        uplink: Callable[[], float],
        finished: Callable[[Outcome], None],
        draw: random.Random,
        *,
        damped: bool,
        reports: int | None,
    ) -> None:
        self.identity = number.to_bytes(4, "big")
        self.class_index = class_index
        self.rtt_ms = device_class.rtt_ms
        self.uplink_bps = device_class.uplink_mbps * 1e6 * draw.lognormvariate(0.0, device_class.uplink_sigma)
        self._deadline_ms = device_class.deadline_ms
        self._controller = controller
        self._table = RequestTable(max_in_flight=32, max_in_flight_bytes=2**28)
        self._name = network
        self._time = time
        self._cloud = cloud
        self._uplink = uplink
        self._finished = finished
        self._draw = draw
        self._live: dict[int, _Live] = {}
        self._late: dict[int, tuple[Decision, float]] = {}
        self._next_id = 0
        self._damped = damped
        self._reports = reports
        self._reported_ms = -1.0
        self._timer: tuple[float, int] = (0.0, 0)
        self._worker_free_ms = self._uplink_free_ms = 0.0

    def connect(self) -> None:
        """The link is up, and the gateway has said what it accepts."""
        now_ms = self._time.now_ms
        self._controller.on_connected(now_ms)
        limits = Limits()
        self._table.connected(
            now_ms, max_in_flight=limits.max_in_flight, max_in_flight_bytes=limits.max_in_flight_bytes
        )

    def hear(self) -> None:
        """Take the newest load report in, as it arrived."""
        now_ms, half_ms = self._time.now_ms, self.rtt_ms / 2
        if self._damped:
            while (moment_ms := self._controller.next_moment_ms(self._name, now_ms)) <= now_ms:
                self._take_in(moment_ms - half_ms)
                # At that moment, not only when the report before it came.
                self._controller.on_rtt(self.rtt_ms, moment_ms)
        self._take_in(now_ms - half_ms)

    def _take_in(self, until_ms: float) -> None:
        for moment_ms, report in self._cloud.reports.between(self._reported_ms, until_ms, self._reports):
            self._reported_ms = moment_ms
            self._controller.on_load(report, moment_ms + self.rtt_ms / 2)

    def submit(self) -> None:
        """The application asks."""
        now_ms = self._time.now_ms
        self.hear()
        self._probe(now_ms)
        queued_ms = max(self._worker_free_ms - now_ms, 0.0)
        decision = self._controller.decide(self._name, now_ms, self._deadline_ms - queued_ms)
        self._next_id += 1
        actions = self._table.submit(
            self._next_id,
            now_ms=now_ms,
            deadline_ms=now_ms + self._deadline_ms,
            on_device=decision.is_local,
            rest_ms=_rest_ms(decision),
            answer_ms=decision.remote_ms,
            held_bytes=0,
        )
        self._live[self._next_id] = _Live(decision, now_ms)
        self._perform(actions)

    def answered(self, request_id: int, answer: Answer) -> None:
        """A result's last byte is here."""
        now_ms = self._time.now_ms
        actions = self._table.answered(request_id)
        live = self._live.get(request_id)
        late = self._late.pop(request_id, None)
        if answer.span_ms > 0:
            decision = live.decision if live is not None else late[0] if late is not None else None
            if decision is not None:
                self._controller.on_span(decision.payload_bytes, answer.span_ms, now_ms)
        if live is not None and actions:
            live.answered_ms, live.answer = now_ms, answer
        elif late is not None:
            stages = _cloud_stages(answer, now_ms - late[1])
            self._controller.on_timings(late[0], stages, now_ms)
        self._perform(actions)

    def refused(self, request_id: int, error: SutureError) -> None:
        now_ms = self._time.now_ms
        self._late.pop(request_id, None)
        live = self._live.get(request_id)
        if live is not None:
            live.answered_ms = now_ms
            retry_after_ms = error.retry_after_ms if isinstance(error, RefusedError) else 0.0
            self._controller.on_refused(self._name, retry_after_ms, now_ms)
        self._perform(self._table.refused(request_id, error))

    # what the table asks for

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            live = self._live[action.request_id]
            if isinstance(action, RunPrefix):
                self._run_prefix(action.request_id, live)
            elif isinstance(action, Send):
                self._send(action, live)
            elif isinstance(action, Decode):
                live.decode_ms = self._about(float(live.decision.predicted[Stage.RESULT_DECODE]))
                end_ms = self._work(live.decode_ms)
                self._time.at(end_ms, self._decoded, action.request_id)
            elif isinstance(action, FinishLocally):
                self._note_overdue(live)
                live.local_start_ms = max(self._worker_free_ms, self._time.now_ms)
                live.local_end_ms = self._work(self._about(_rest_ms(live.decision, corrected=False)))
                self._time.at(live.local_end_ms, self._finished_locally, action.request_id)
            elif isinstance(action, StopLocal):
                if live.local_end_ms == self._worker_free_ms:
                    self._worker_free_ms = max(self._time.now_ms, live.local_start_ms)
            else:
                self._end(action, live)
        self._set_timer()

    def _run_prefix(self, request_id: int, live: _Live) -> None:
        rows, row = live.decision.rows, live.decision.row
        live.wait_ms = max(self._worker_free_ms - self._time.now_ms, 0.0)
        live.device_ms = self._about(float(rows.edge_ms[row]))
        live.encode_ms = self._about(float(rows.encode_ms[row]))
        self._time.at(self._work(live.device_ms + live.encode_ms), self._prefix_done, request_id)

    def _prefix_done(self, request_id: int) -> None:
        live = self._live.get(request_id)
        if live is not None:
            payload_bytes = live.decision.payload_bytes
            self._perform(
                self._table.prefix_done(request_id, now_ms=self._time.now_ms, payload_bytes=payload_bytes)
            )

    def _send(self, action: Send, live: _Live) -> None:
        now_ms = live.sent_ms = self._time.now_ms
        live.queued_bytes = round(max(self._uplink_free_ms - now_ms, 0.0) * self.uplink_bps / 8000.0)
        span_ms = self._upload(live.decision.payload_bytes)
        self._time.at(
            self._uplink_free_ms + self.rtt_ms / 2,
            self._cloud.infer,
            self,
            self.identity,
            action.request_id,
            live.decision,
            span_ms,
            action.budget_ms,
            self.rtt_ms / 2,
            self.uplink_bps,
        )

    def _upload(self, nbytes: int) -> float:
        """Occupy the uplink; the answer is for how long."""
        span_ms = self._about(nbytes * 8000.0 / (self.uplink_bps * self._uplink()))
        self._uplink_free_ms = max(self._uplink_free_ms, self._time.now_ms) + span_ms
        return span_ms

    def _probe(self, now_ms: float) -> None:
        nbytes = self._controller.wants_probe(now_ms) if self._uplink_free_ms <= now_ms else 0
        if nbytes:
            self._controller.on_probe_sent(nbytes, now_ms)
            span_ms = self._upload(nbytes)
            self._time.at(self._uplink_free_ms + self.rtt_ms, self._probed, nbytes, span_ms)

    def _probed(self, nbytes: int, span_ms: float) -> None:
        self._controller.on_span(nbytes, span_ms, self._time.now_ms)

    def _decoded(self, request_id: int) -> None:
        if request_id in self._live:
            self._perform(self._table.decode_done(request_id))

    def _finished_locally(self, request_id: int) -> None:
        if request_id in self._live:
            self._perform(self._table.local_done(request_id))

    def _tick(self, version: int) -> None:
        if self._timer[1] == version:
            now_ms = self._time.now_ms
            self._perform(self._table.tick(now_ms, max(self._worker_free_ms - now_ms, 0.0)))

    def _set_timer(self) -> None:
        now_ms = self._time.now_ms
        due_ms = self._table.next_tick_ms(now_ms, max(self._worker_free_ms - now_ms, 0.0))
        version = self._timer[1] + 1
        self._timer = (due_ms or 0.0, version)
        if due_ms is not None:
            self._time.at(due_ms, self._tick, version)

    def _end(self, action: Complete | Fail, live: _Live) -> None:
        now_ms = self._time.now_ms
        failed = isinstance(action, Fail)
        if failed:
            self._note_overdue(live)
        by_cloud = not failed and live.answer is not None and action.fallback is None  # type: ignore[union-attr]
        if not failed and action.fallback is None:  # type: ignore[union-attr]
            self._controller.on_timings(live.decision, self._measured(live), now_ms)
        del self._live[action.request_id]
        if live.sent_ms and not live.answered_ms:
            self._late[action.request_id] = (live.decision, live.sent_ms)
        latency_ms = now_ms - live.started_ms
        fallback = "" if failed else str(action.fallback or "")  # type: ignore[union-attr]
        self._finished(
            Outcome(
                live.started_ms,
                self.class_index,
                live.decision.cut.index,
                not live.decision.is_local,
                latency_ms,
                by_cloud,
                failed or latency_ms > self._deadline_ms,
                fallback,
            )
        )

    def _measured(self, live: _Live) -> dict[Stage, float]:
        stages = {Stage.QUEUE: live.wait_ms, Stage.DEVICE: live.device_ms, Stage.ENCODE: live.encode_ms}
        if live.answer is not None:
            stages |= _cloud_stages(live.answer, live.answered_ms - live.sent_ms)
            stages[Stage.RESULT_DECODE] = live.decode_ms
        stages[Stage.OVERHEAD] = max(self._time.now_ms - live.started_ms - sum(stages.values()), 0.0)
        return stages

    def _note_overdue(self, live: _Live) -> None:
        if live.sent_ms and not live.answered_ms:
            now_ms = self._time.now_ms
            self._controller.on_overdue(live.decision, now_ms - live.sent_ms, now_ms, live.queued_bytes)

    def _work(self, duration_ms: float) -> float:
        """Occupy the worker; the answer is until when."""
        self._worker_free_ms = max(self._worker_free_ms, self._time.now_ms) + duration_ms
        return self._worker_free_ms

    def _about(self, duration_ms: float) -> float:
        return duration_ms * max(0.5, 1.0 + _NOISE * self._draw.gauss(0.0, 1.0))


def _rest_ms(decision: Decision, corrected: bool = True) -> float:
    rows = decision.rows
    units_ms = max(float(rows.edge_ms[rows.local] - rows.edge_ms[decision.row]), 0.0)
    return units_ms * decision.conditions.device if corrected else units_ms


def _cloud_stages(answer: Answer, elapsed_ms: float) -> dict[Stage, float]:
    stages = {
        Stage.UPLINK: answer.span_ms,
        Stage.WAIT: answer.wait_ms,
        Stage.DECODE: answer.decode_ms,
        Stage.CLOUD: answer.compute_ms,
        Stage.RESULT_ENCODE: answer.encode_ms,
    }
    stages[Stage.NETWORK] = max(elapsed_ms - sum(stages.values()), 0.0)
    return stages
