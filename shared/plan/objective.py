"""What a plan is to be best at.

An objective turns rows and conditions into one cost per row; everything else (choosing, hysteresis,
explaining) is the same for all objectives.  A limit that no row keeps is not a crash: the scores then
prefer what comes nearest and say which limit is not met and what would be possible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.plan.energy import Power, energy_mj
from shared.plan.latency import Conditions, latency_ms
from shared.plan.rows import Rows
from shared.plan.stages import POSITION, Stage

__all__ = [
    "BestFidelity",
    "Energy",
    "Latency",
    "Objective",
    "Scores",
    "Throughput",
    "Weighted",
    "bottleneck_ms",
    "in_flight",
    "with_backlog",
]

_STEADY_SHARE = 0.95
"""The most of a stage's time that a stream may fill: with more, its queue grows on the least jitter."""

_PARTS = [
    [POSITION[stage] for stage in stages]
    for stages in (
        (Stage.DEVICE, Stage.ENCODE, Stage.RESULT_DECODE),
        (Stage.UPLINK,),
        (Stage.DECODE, Stage.CLOUD, Stage.RESULT_ENCODE),
        (Stage.DOWNLINK,),
    )
]
"""What works on different requests at the same time."""
_DEVICE_PART = _PARTS[0]
_FASTER = 1e-6
"""Less than any difference of fidelity that can be measured."""
_CLOUD = 2


class Scores(NamedTuple):
    """``cost[row]`` is what is minimised, ``inf`` for a row that may not be chosen; ``latency_ms[row]`` is
    the predicted latency, ``inf`` only for what cannot be reached.

    ``unit`` is the cost's, for people.  ``unmet`` is empty, or names the limit that no row keeps and the
    nearest value that one does; the cost is then what the limit is on, not the objective's own.
    """

    cost: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    unit: str = "ms"
    unmet: str = ""


def with_backlog(scores: Scores, rows: Rows, conditions: Conditions, backlog_ms: float) -> Scores:
    """Latencies and what a row does to the requests that come behind it, while ``backlog_ms`` of work waits
    for the device.

    Every request that comes during the backlog waits for the time that this one occupies the device.  As
    many are expected behind it as are ahead of it: the backlog over what a request takes that stays here.
    Without that, requests that come faster than the device computes all stay here, each because it would be
    a little slower elsewhere, and their queue grows without end.
    """
    held_ms = (conditions.weights()[_DEVICE_PART, None] * rows.columns[_DEVICE_PART]).sum(axis=0)
    whole_ms = float(held_ms[rows.local])
    if not whole_ms > 0.0:
        return scores
    return scores._replace(cost=scores.cost + backlog_ms * held_ms / whole_ms)


class Objective(Protocol):
    """Frozen and stateless: equal rows and conditions always score the same."""

    def score(self, rows: Rows, conditions: Conditions) -> Scores:
        """Neither array may be written to: they may be one and the same."""


@dataclass(frozen=True, slots=True)
class Latency:
    """The time from the request to its answer, within ``energy_mj`` of the device if given."""

    energy_mj: float | None = None
    power: Power | None = None

    def __post_init__(self) -> None:
        if self.energy_mj is not None and self.power is None:
            raise ValueError("a limit on energy needs to know what the device draws: give power")

    def score(self, rows: Rows, conditions: Conditions) -> Scores:
        latency = latency_ms(rows, conditions)
        if self.energy_mj is None or self.power is None:
            return Scores(latency, latency)
        energy = energy_mj(rows, conditions, self.power)
        return _within(latency, "ms", energy, "mJ", self.energy_mj, "energy_mj", latency)


@dataclass(frozen=True, slots=True)
class Energy:
    """The device's energy for one request, with an answer within ``deadline_ms`` if given."""

    power: Power
    deadline_ms: float | None = None

    def score(self, rows: Rows, conditions: Conditions) -> Scores:
        latency = latency_ms(rows, conditions)
        energy = energy_mj(rows, conditions, self.power)
        if self.deadline_ms is None:
            return Scores(energy, latency, "mJ")
        return _within(energy, "mJ", latency, "ms", self.deadline_ms, "deadline_ms", latency)


@dataclass(frozen=True, slots=True)
class BestFidelity:
    """The answer nearest to the whole network's among those within ``deadline_ms``; the fastest among equals.

    The cost is a row's infidelity, and a thousandth of a thousandth for a deadline's length of latency.
    """

    deadline_ms: float

    def score(self, rows: Rows, conditions: Conditions) -> Scores:
        latency = latency_ms(rows, conditions)
        infidelity = rows.infidelity + latency * (_FASTER / self.deadline_ms)
        return _within(infidelity, "lost", latency, "ms", self.deadline_ms, "deadline_ms", latency)


@dataclass(frozen=True, slots=True)
class Throughput:
    """A stream of requests, pipelined: device, uplink, cloud and downlink work on different requests.

    Without a rate the slowest of the four is made as fast as it gets.  With one, the fastest answer among
    the rows that keep up with it (:func:`bottleneck_ms` below its period).
    """

    rate_hz: float | None = None

    def score(self, rows: Rows, conditions: Conditions) -> Scores:
        latency = latency_ms(rows, conditions)
        period = bottleneck_ms(rows, conditions)
        if self.rate_hz is None:
            return Scores(period, latency)
        most_ms = 1000.0 / self.rate_hz * _STEADY_SHARE
        keeps_up = period <= most_ms
        if keeps_up.any():
            return Scores(np.where(keeps_up, latency, np.inf), latency)
        nearest = 1000.0 / float(period.min()) * _STEADY_SHARE
        unmet = f"rate_hz {self.rate_hz:.4g} cannot be kept up; the nearest possible is {nearest:.4g}"
        return Scores(period, latency, unmet=unmet)


@dataclass(frozen=True, slots=True)
class Weighted:
    """A price for each ms of latency, mJ of energy and kB on the uplink; the cost is in points."""

    per_ms: float = 1.0
    per_mj: float = 0.0
    per_uplink_kb: float = 0.0
    power: Power | None = None

    def __post_init__(self) -> None:
        prices = (self.per_ms, self.per_mj, self.per_uplink_kb)
        if min(prices) < 0 or max(prices) <= 0:
            raise ValueError("prices cannot be negative, and one of them must be above 0")
        if self.per_mj and self.power is None:
            raise ValueError("a price on energy needs to know what the device draws: give power")

    def score(self, rows: Rows, conditions: Conditions) -> Scores:
        latency = latency_ms(rows, conditions)
        kilobytes = rows.payload_bytes * (conditions.batch / 1000.0)
        cost = latency * self.per_ms if self.per_ms else np.zeros(len(rows))
        cost += kilobytes * self.per_uplink_kb
        if self.power is not None and self.per_mj:
            cost += energy_mj(rows, conditions, self.power) * self.per_mj
        if not conditions.reachable:
            cost[rows.remote] = np.inf
        return Scores(cost, latency, "points")


def bottleneck_ms(rows: Rows, conditions: Conditions) -> NDArray[np.float64]:
    """Per row the time for which one request occupies the busiest of device, uplink, cloud and downlink:
    the least distance between the answers of a pipelined stream."""
    weights = conditions.weights()
    parts = np.zeros((len(_PARTS), len(weights)))
    for index, stages in enumerate(_PARTS):
        parts[index, stages] = weights[stages]
    parts[_CLOUD] /= conditions.replicas
    busiest: NDArray[np.float64] = (parts @ rows.columns).max(axis=0)
    if not conditions.reachable:
        busiest[rows.remote] = np.inf
    return busiest


def in_flight(latency_ms: float, period_ms: float) -> int:
    """How many requests must be under way at once for one answer every ``period_ms`` (Little's law)."""
    return max(1, math.ceil(latency_ms / period_ms - 1e-9))


def _within(
    cost: NDArray[np.float64],
    cost_unit: str,
    spent: NDArray[np.float64],
    spent_unit: str,
    limit: float,
    name: str,
    latency: NDArray[np.float64],
) -> Scores:
    """``cost`` where ``spent`` keeps the limit; ``spent`` itself, with what is possible, when none does."""
    keeps = spent <= limit
    if keeps.any():
        return Scores(np.where(keeps, cost, np.inf), latency, cost_unit)
    nearest = float(spent.min())
    unmet = f"{name} {limit:.4g} cannot be kept; the nearest possible is {nearest:.4g} {spent_unit}"
    return Scores(spent, latency, spent_unit, unmet)
