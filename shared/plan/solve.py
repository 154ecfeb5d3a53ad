"""Choosing a row: the exact optimum, the runner-up, and the rows that can be optimal at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shared.errors import PlanError
from shared.plan.latency import Conditions
from shared.plan.objective import Scores
from shared.plan.rows import Rows
from shared.plan.stages import POSITION, Stage

__all__ = ["Choice", "Segment", "choose", "hull", "uplink_segments"]

_TIE = 1e-12
"""Costs closer than this, relatively, are equal: sums in another order differ by less."""


@dataclass(frozen=True, slots=True)
class Choice:
    """``row`` is chosen; ``best`` has the least cost, and is another row only where hysteresis held the
    one in use; ``runner_up`` is the best of all rows but ``row`` (None when no other may be chosen)."""

    row: int
    cost: float
    best: int
    best_cost: float
    runner_up: int | None
    runner_up_cost: float

    @property
    def margin(self) -> float:
        """What the runner-up would cost more; negative while hysteresis holds the row."""
        return self.runner_up_cost - self.cost

    @property
    def gain(self) -> float:
        """The share of the chosen row's cost that the best row would save: 0 when it is the best."""
        return 1.0 - self.best_cost / self.cost if self.cost > 0 else 0.0


def choose(scores: Scores, current: int | None = None, threshold: float = 0.0) -> Choice:
    """The row of least cost, the earliest among equals; or ``current``, for as long as the best would not
    save more than the share ``threshold`` of its cost.  Raises PlanError when no row may be chosen."""
    cost = scores.cost
    best = _first_minimum(cost)
    best_cost = float(cost[best])
    if not np.isfinite(best_cost):
        raise PlanError("no candidate can be chosen: the constraints exclude every cut and codec")
    row = best
    if current is not None and best_cost >= (1.0 - threshold) * float(cost[current]):
        row = current
    chosen_cost = float(cost[row])
    cost[row] = np.inf
    runner_up = _first_minimum(cost)
    runner_up_cost = float(cost[runner_up])
    cost[row] = chosen_cost
    if not np.isfinite(runner_up_cost):
        return Choice(row, chosen_cost, best, best_cost, None, np.inf)
    return Choice(row, chosen_cost, best, best_cost, runner_up, runner_up_cost)


def _first_minimum(cost: NDArray[np.float64]) -> int:
    least = cost[cost.argmin()]
    return int((cost <= least + abs(least) * _TIE).argmax())


@dataclass(frozen=True, slots=True)
class Segment:
    """``row`` is the fastest for uplinks between the two rates."""

    row: int
    from_bps: float
    to_bps: float


def uplink_segments(rows: Rows, conditions: Conditions) -> list[Segment]:
    """The fastest row for every uplink rate, everything else as in ``conditions``; slowest uplink first.

    Latency is a line over the time of one bit, so this is the lower envelope of the rows' lines
    (monotone chain over the rows that no other beats in both intercept and slope).
    """
    uplink = POSITION[Stage.UPLINK]
    weights = conditions.weights()
    weights[uplink] = 0.0
    intercept = weights @ rows.columns
    slope = rows.columns[uplink] * (8000.0 * conditions.batch)  # ms per (seconds per bit)
    if not conditions.reachable:
        intercept[rows.remote] = np.inf
    envelope: list[int] = []  # from the fastest uplink to the slowest
    starts: list[float] = []  # seconds per bit from which each row is the fastest
    for row in np.lexsort((np.arange(len(rows)), slope, intercept)).tolist():
        if not np.isfinite(intercept[row]) or (envelope and slope[row] >= slope[envelope[-1]]):
            continue
        start = 0.0
        while envelope:
            last = envelope[-1]
            start = float((intercept[row] - intercept[last]) / (slope[last] - slope[row]))
            if start > starts[-1]:
                break
            envelope.pop()
            starts.pop()
            start = 0.0
        envelope.append(row)
        starts.append(start)
    ends = [*starts[1:], np.inf]
    return [
        Segment(row, 0.0 if end == np.inf else 1.0 / end, np.inf if start == 0 else 1.0 / start)
        for row, start, end in reversed(list(zip(envelope, starts, ends, strict=True)))
    ]


def hull(rows: Rows, conditions: Conditions, slowdowns: Iterable[float] = (1.0, 2.0, 5.0, 20.0)) -> list[int]:
    """The rows that are the fastest for some uplink at one of the cloud's ``slowdowns``, in row order.

    They are what is worth warming, measuring and drawing.
    """
    found = {
        segment.row
        for slowdown in slowdowns
        for segment in uplink_segments(rows, replace(conditions, slowdown=slowdown))
    }
    return sorted(found)
