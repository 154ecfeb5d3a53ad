"""What the devices are told of the load, and when: pure, with the time passed in.

A report is periodic, numbered and of one frame, so that a lost one does no harm and a stale one is
recognised.  Between two periods an early one is due when what a device would decide by has moved.

What it costs: with B bytes a report and N devices, the time between two reports is

    at least   max(period * min(1, 0.2 * 2^k), N * B / budget)     where k reports before were early as well
    at most    max(period, N * B / budget)

News comes early, after a fifth of the period, but a load that moves all the time is told at the pace of the
period and no faster.  So a device never receives more than B per period for long, however high the load, and
less when there are many devices: all of them together receive at most the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from cloud_cluster.model_queue import ModelState
from shared.wire.frame import FRAME0_BYTES
from shared.wire.messages import LoadReport, ModelLoad

__all__ = ["FEED_BYTES_PER_S", "LoadMeter", "VersionLoad", "has_moved"]

FEED_BYTES_PER_S = 1_000_000.0
"""What all devices of a gateway together are sent of its load feed: 10 reports a second for some 500."""

# A change of the wait below this share, or below this many milliseconds, changes no device's mind.
_MOVED_SHARE = 0.2
_MOVED_MS = 5.0
_RATE_WINDOW_MS = 1000.0
_EARLY_SHARE = 0.2
_BATCH_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class VersionLoad:
    """The state of one version of a network; ``index`` as on the card."""

    index: int
    name: str
    state: ModelState
    target: int = 1
    starting: int = 0


@dataclass(slots=True)
class _Rate:
    """Events per second, averaged with exponentially fading weight over about a second."""

    total: int = 0
    per_s: float = 0.0
    at_ms: float = -math.inf

    def update(self, total: int, now_ms: float) -> float:
        span_ms = now_ms - self.at_ms
        if span_ms > 0 and math.isfinite(span_ms):
            fading = math.exp(-span_ms / _RATE_WINDOW_MS)
            self.per_s = self.per_s * fading + (total - self.total) / span_ms * 1e3 * (1 - fading)
        self.total, self.at_ms = total, now_ms
        return self.per_s


@dataclass(slots=True)
class _Meters:
    """Of one version."""

    admitted: _Rate = field(default_factory=_Rate)
    refused: _Rate = field(default_factory=_Rate)
    batch_requests: float = 1.0


class LoadMeter:
    """Builds the numbered reports of one gateway, one in ``period_ms`` or a little more often."""

    def __init__(self, gateway: str, period_ms: float, budget_bytes_per_s: float = FEED_BYTES_PER_S) -> None:
        self.period_ms = period_ms
        self._gateway = gateway
        self._budget_bytes_per_ms = budget_bytes_per_s / 1e3
        self._meters: dict[int, _Meters] = {}
        self._sequence = 0
        self._reported: dict[int, ModelState] = {}
        self._reported_ms = -math.inf
        self._report_bytes = 0
        self._early_before = 0

    @property
    def sequence(self) -> int:
        """Of the last report; 0 before the first."""
        return self._sequence

    def on_answer(self, index: int, batch_requests: int) -> None:
        """Note how many requests shared the work of one answer."""
        meters = self._meters.setdefault(index, _Meters())
        meters.batch_requests += _BATCH_WEIGHT * (batch_requests - meters.batch_requests)

    def due_ms(self, loads: Sequence[VersionLoad], devices: int = 0) -> float:
        """When the next report is due, given what there is to say and to how many; may lie in the past."""
        if self._have_moved(loads):
            early_ms = self.period_ms * min(1.0, _EARLY_SHARE * 2.0**self._early_before)
            return self._reported_ms + max(early_ms, self._spending_ms(devices))
        return self._reported_ms + self._longest_ms(devices)

    def report(self, loads: Sequence[VersionLoad], now_ms: float, devices: int = 0) -> LoadReport:
        """The report of these loads, numbered one above the last."""
        self._sequence += 1
        self._early_before = self._early_before + 1 if self._have_moved(loads) else 0
        self._reported = {load.index: load.state for load in loads}
        self._reported_ms = now_ms
        self._meters = {load.index: self._meters.get(load.index, _Meters()) for load in loads}
        models = [self._model_load(load, now_ms) for load in loads]
        report = LoadReport(
            gateway=self._gateway,
            sequence=self._sequence,
            models=models,
            period_ms=self._longest_ms(devices),
        )
        self._report_bytes = FRAME0_BYTES + len(msgspec.msgpack.encode(report))
        return report

    def _have_moved(self, loads: Sequence[VersionLoad]) -> bool:
        if self._reported.keys() != {load.index for load in loads}:
            return True
        return any(has_moved(self._reported[load.index], load.state) for load in loads)

    def _spending_ms(self, devices: int) -> float:
        return devices * self._report_bytes / self._budget_bytes_per_ms

    def _longest_ms(self, devices: int) -> float:
        return max(self.period_ms, self._spending_ms(devices))

    def _model_load(self, load: VersionLoad, now_ms: float) -> ModelLoad:
        state, meters = load.state, self._meters[load.index]
        return ModelLoad(
            name=load.name,
            index=load.index,
            ready=state.ready,
            starting=load.starting,
            target=load.target,
            queue_ms=state.queue_ms,
            wait_ms=state.wait_ms,
            slowdown=state.slowdown,
            queued=state.queued,
            in_flight=state.in_flight,
            batch_requests=meters.batch_requests,
            admitted_per_s=meters.admitted.update(state.admitted, now_ms),
            refused_per_s=meters.refused.update(state.refused, now_ms),
            age_ms=state.age_ms,
        )


def has_moved(old: ModelState, new: ModelState) -> bool:
    """Whether a device might decide otherwise by the new state than by the old."""
    if old.ready != new.ready:
        return True
    if abs(new.slowdown - old.slowdown) > _MOVED_SHARE * old.slowdown:
        return True
    moved_ms = abs(new.wait_ms - old.wait_ms)
    return moved_ms > _MOVED_MS and moved_ms > _MOVED_SHARE * max(old.wait_ms, new.wait_ms)
