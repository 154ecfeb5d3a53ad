"""Which lossy pairs are worth judging: those that a plan would choose somewhere, if only they were allowed.

Judging a pair costs runs of the network, and of hundreds of pairs a plan chooses among a dozen, whatever the
link and the load are.  So what is allowed already, all that is lossless and what was shown to be good enough,
is compared with the rest over a grid of conditions: a pair that would beat it under none of them changes no
plan there.  As pairs are judged, fewer of the others are worth it, and never more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from shared.codec import Form
from shared.plan.gate import Gate
from shared.plan.latency import Conditions
from shared.plan.objective import Objective
from shared.plan.rows import Rows

if TYPE_CHECKING:
    from shared.graph.ir import Cut

__all__ = ["EVERYWHERE", "Pair", "Worth", "pairs_of"]

Pair = tuple[tuple[int, ...], Form]
"""What crosses, and its lossy form."""

EVERYWHERE = tuple(
    Conditions(uplink_bps=uplink, rtt_ms=0.0, wait_ms=wait, slowdown=slowdown, downlink_bps=uplink)
    for uplink, slowdown, wait in product(
        np.geomspace(1e5, 1e9, 17).tolist(),
        (0.01, 0.03, 0.1, 0.3, 1.0, 2.0),
        (0.0, 30.0, 300.0),  # beside latency alone it matters which pairs still keep a limit
    )
)
"""From 0.1 Mbps to 1 Gbps, and from a cloud that is a hundred times as fast as its unit times to half as
fast: before there is a cloud, the device's own unit times stand for the cloud's."""


def pairs_of(rows: Rows, row: int) -> frozenset[Pair]:
    """What must have been judged for a row to be allowed: nothing for a lossless one.  As in
    :meth:`shared.plan.gate.Gate.fidelity` a mix takes all of its forms, each for all that crosses."""
    live = rows.cut_of(row).live
    return frozenset((live, codec.form) for codec in rows.codecs_of(row) if codec.form is not Form.EXACT)


class Worth:
    """``rows`` are all that no other constraint than ``min_agreement`` excludes."""

    def __init__(
        self, rows: Rows, objective: Objective, conditions: Sequence[Conditions] = EVERYWHERE
    ) -> None:
        self._rows = rows
        self._pairs = [pairs_of(rows, row) for row in range(len(rows))]
        self._cost = np.array([objective.score(rows, at).cost for at in conditions])

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Those at which something lossy may be sent."""
        lossy = {int(self._rows.cut[row]) for row, pairs in enumerate(self._pairs) if pairs}
        return tuple(self._rows.cuts[index] for index in sorted(lossy))

    def pairs(self, gate: Gate, enough: float | None, undecided: Collection[Pair]) -> set[Pair]:
        """Those of ``undecided`` that would beat, under some of the conditions, everything that is allowed
        without them.  ``gate`` tells of all other pairs whether they are ``enough``; what it does not hold
        is not allowed."""
        shown = {
            (live, form)
            for live, forms in gate.measured.items()
            for form, fidelity in forms.items()
            if enough is None or fidelity.shown >= enough
        }.difference(undecided)
        possible = shown.union(undecided)
        allowed = np.array([pairs <= shown for pairs in self._pairs])
        perhaps = np.array([pairs <= possible for pairs in self._pairs]) & ~allowed
        best = self._cost[:, allowed].min(axis=1, initial=np.inf)
        better = perhaps & (self._cost < best[:, None]).any(axis=0)
        return {
            pair for row in np.flatnonzero(better).tolist() for pair in self._pairs[row] if pair not in shown
        }
