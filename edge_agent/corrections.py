"""How far one network's predictions are off, per stage, as learned from the stages of its replies.

Compute and codec times are corrected by a factor over the profile, waiting and the network by an amount.
What is learned holds for a while and then fades, since a stage that is no longer used says nothing of
itself: a device that was throttled while it still ran something, a cloud that was busy when it was last
asked.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING

from edge_agent.estimate import Tracker
from shared.plan.stages import POSITION, Stage

if TYPE_CHECKING:
    from edge_agent.decision import Decision

__all__ = ["Corrections"]

_LOW, _HIGH = 0.2, 10.0
_TOO_SHORT_MS = 0.05
"""Stages predicted shorter than this measure the clock and the scheduler."""

_HOLD_MS = {"device": 10_000.0, "cloud": 5_000.0}
_HALF_LIFE_MS = {"device": 15_000.0, "cloud": 5_000.0}
_OUTDATED = 0.5


def _fade(age_ms: float, side: str) -> float:
    """What is left of a correction of this age: 1 while it holds, then halving."""
    return math.exp2(-max(0.0, age_ms - _HOLD_MS[side]) / _HALF_LIFE_MS[side])


class _Factor:
    def __init__(self, side: str) -> None:
        self._tracker = Tracker(1.0, _LOW, _HIGH)
        self._side = side
        self._updated_ms = -math.inf

    def add(self, ratio: float, now_ms: float) -> None:
        if _fade(now_ms - self._updated_ms, self._side) < _OUTDATED:
            self._tracker.assume(self.at(now_ms))  # one more sample must not bring back what has faded
        self._tracker.add(ratio)
        self._updated_ms = now_ms

    def at(self, now_ms: float) -> float:
        if self._tracker.samples == 0:
            return 1.0
        return math.pow(self._tracker.value, _fade(now_ms - self._updated_ms, self._side))


class _Amount:
    """The median of the last five samples, each faded by its own age."""

    def __init__(self, side: str) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=5)
        self._side = side

    def add(self, amount_ms: float, now_ms: float) -> None:
        self._recent.append((amount_ms, now_ms))

    def forget(self) -> None:
        self._recent.clear()

    def at(self, now_ms: float) -> float:
        if not self._recent:
            return 0.0
        return median(amount_ms * _fade(now_ms - at_ms, self._side) for amount_ms, at_ms in self._recent)


class Corrections:
    """One network's corrections.  Robust to outliers: one odd reply moves nothing."""

    def __init__(self) -> None:
        self._factors = {
            Stage.DEVICE: _Factor("device"),
            Stage.ENCODE: _Factor("device"),
            Stage.DECODE: _Factor("cloud"),
            Stage.CLOUD: _Factor("cloud"),
        }
        self._network, self._wait = _Amount("cloud"), _Amount("cloud")
        self._overhead = _Amount("device")
        self._errors: deque[float] = deque(maxlen=64)

    def observe(
        self,
        decision: Decision,
        measured: Mapping[Stage, float],
        now_ms: float,
        *,
        downloaded: bool = False,
    ) -> None:
        """Learn from one finished request.  A stage that is missing from ``measured`` teaches nothing;
        ``overhead`` is there when the stages sum to the whole latency.  ``downloaded`` when the way back
        has measured the downlink: it is then not charged to the network a second time."""
        conditions = decision.conditions
        for stage, factor in self._factors.items():
            base = float(decision.rows.columns[POSITION[stage], decision.row]) * conditions.batch
            if stage is Stage.CLOUD:
                base *= conditions.slowdown
            if stage in measured and base >= _TOO_SHORT_MS and measured[stage] > 0:
                factor.add(measured[stage] / base, now_ms)
        overhead = measured.get(Stage.OVERHEAD, 0.0)
        if decision.is_local:
            self._overhead.add(overhead, now_ms)
        elif Stage.NETWORK in measured and not downloaded:
            explained = conditions.rtt_ms + decision.predicted[Stage.DOWNLINK] + self.overhead_ms(now_ms)
            crossing = measured[Stage.NETWORK] + measured.get(Stage.DOWNLINK, 0.0) + overhead
            self._network.add(crossing - explained, now_ms)
        if Stage.WAIT in measured:
            self._wait.add(measured[Stage.WAIT] - decision.load_wait_ms, now_ms)
        total = sum(measured.values())
        if Stage.OVERHEAD in measured and total > 0:  # otherwise only a part of the request was measured
            self._errors.append(abs(decision.predicted_ms - total) / total)

    def on_connected(self) -> None:
        """Forget what crossing an earlier connection took, and waiting behind it."""
        self._network.forget()
        self._wait.forget()

    def factor(self, stage: Stage, now_ms: float) -> float:
        """Measured over profiled, for ``device``, ``encode``, ``decode`` and ``cloud``."""
        return self._factors[stage].at(now_ms)

    def network_ms(self, now_ms: float) -> float:
        """What crossing to the cloud and back takes beyond the round trip of a ping; may be negative."""
        return self._network.at(now_ms)

    def wait_ms(self, now_ms: float) -> float:
        """What requests waited beyond what the load feed said; may be negative."""
        return self._wait.at(now_ms)

    def overhead_ms(self, now_ms: float) -> float:
        """What a request costs the agent beyond its stages."""
        return self._overhead.at(now_ms)

    @property
    def prediction_error(self) -> float | None:
        """The median of |predicted - measured| / measured over the last requests; None before the first."""
        return median(self._errors) if self._errors else None
