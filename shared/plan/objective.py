"""What a plan is to be best at.

An objective turns rows and conditions into one cost per row and says which rows it may choose at all;
everything else (choosing, hysteresis, explaining) is the same for all objectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.plan.latency import Conditions, latency_ms
from shared.plan.rows import Rows

__all__ = ["Latency", "Objective", "Scores"]


class Scores(NamedTuple):
    """``cost[row]`` is what is minimised, ``inf`` for a row that may not be chosen; ``latency_ms[row]`` is
    the predicted latency, ``inf`` only for what cannot be reached."""

    cost: NDArray[np.float64]
    latency_ms: NDArray[np.float64]


class Objective(Protocol):
    """Frozen and stateless: equal rows and conditions always score the same."""

    @property
    def unit(self) -> str:
        """The unit of the cost, for people, e.g. ``ms``."""

    def score(self, rows: Rows, conditions: Conditions) -> Scores:
        """Raises PlanError when no row may be chosen."""


@dataclass(frozen=True, slots=True)
class Latency:
    """The time from the request to its answer."""

    unit: ClassVar[str] = "ms"

    def score(self, rows: Rows, conditions: Conditions) -> Scores:
        latency = latency_ms(rows, conditions)
        return Scores(latency, latency)
