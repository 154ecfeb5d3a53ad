"""A row that a person chose, and the rows that a deadline leaves.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shared.codec import Codec
from shared.errors import PlanError
from shared.plan.constraints import Excluded
from shared.plan.objective import Scores
from shared.plan.rows import Rows

if TYPE_CHECKING:
    from shared.graph.ir import Cut

__all__ = ["Pin", "within"]


class Pin(NamedTuple):
    """A cut, and one codec for all tensors that cross it or one for each."""

    cut: Cut
    codecs: tuple[Codec, ...]

    def check(self, name: str, candidates: Rows, excluded: Sequence[Excluded], menu: Sequence[Codec]) -> None:
        """Raises PlanError when a constraint excludes the row, or when the codecs for each are no
        candidate."""
        label = ", ".join(codec.label for codec in dict.fromkeys(self.codecs))
        row = candidates.find(self.cut, *self.codecs)
        mixed = len(set(self.codecs)) > 1
        if row is None if mixed else self.codecs[0] not in menu:
            allowed = ", ".join(each.label for each in menu)
            raise PlanError(f"{name} may use {allowed}, not {label}" + " at once" * mixed)
        for each in excluded:
            if each.row == row:
                raise PlanError(f"{name} may not be cut at {self.cut.name} in {label}: {each.reason}")

    def row(self, rows: Rows, scores: Scores) -> int | None:
        """None where it cannot be used now."""
        row = rows.find(self.cut, *self.codecs)
        return row if row is not None and np.isfinite(scores.cost[row]) else None


def within(scores: Scores, deadline_ms: float) -> tuple[Scores, str]:
    """The scores of what meets the deadline, or else of speed alone; and which of the two, for people."""
    possible = np.isfinite(scores.cost)
    in_time = (scores.latency_ms <= deadline_ms) & possible
    if in_time.any():
        cost = np.where(in_time, scores.cost, np.inf)
        return scores._replace(cost=cost), f"the plan in use would miss the deadline of {deadline_ms:.0f} ms"
    fastest = scores._replace(cost=np.where(possible, scores.latency_ms, np.inf), unit="ms")
    return fastest, f"nothing meets the deadline of {deadline_ms:.0f} ms; this is the fastest"
