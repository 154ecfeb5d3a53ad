"""What a plan for one network may choose from: its cuts and codecs, with all that is known of them.  Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.pin import Pin
from shared.codec import Codec
from shared.plan.constraints import Constraints, Excluded, constrain
from shared.plan.energy import Power
from shared.plan.explain import Explanation, explain
from shared.plan.gate import Gate
from shared.plan.latency import Conditions
from shared.plan.objective import Objective, Scores
from shared.plan.profile import Profile
from shared.plan.rows import FAITHFUL, Rows, build_rows

if TYPE_CHECKING:
    from shared.graph.ir import Cut, Graph
    from shared.wire.messages import ModelCard

__all__ = ["UNTOLD", "Candidates"]

UNTOLD = 65535
"""A load's or a card's ``index`` that tells no version."""


class Candidates:
    """``rows`` are what the constraints leave, ``excluded`` the others with the reason; both are replaced
    whenever more is known.  Raises PlanError for constraints that are impossible together.

    ``problem`` says why the cloud's card is of no use, empty when it is; ``index`` is the version on it;
    ``news`` is for what the rows changed last.  ``tables`` is the digest of the transform's tables, which is
    a candidate with a cloud that holds the same.
    """

    rows: Rows
    excluded: tuple[Excluded, ...]

    def __init__(
        self,
        name: str,
        graph: Graph,
        profile: Profile,
        constraints: Constraints,
        gate: Gate | None,
        tables: str = "",
    ) -> None:
        self.graph = graph
        self.profile = profile
        self.problem = "no cloud has offered this network"
        self.index = UNTOLD
        self.news = "nothing new"
        self._name = name
        self._constraints = constraints
        metered = constraints.max_uplink_bytes
        self._most_bytes = math.inf if metered is None else metered
        self._local_is_last_resort = constraints.cut not in (None, len(graph.units))
        self._gate = gate
        self._tables = tables
        self._same_tables = bool(tables)  # until a card says otherwise
        self._cloud_unit_ms: tuple[float, ...] = ()
        self._wide_cuts: tuple[Cut, ...] = ()
        if constraints.cut is not None:  # what is impossible is said now, not when the cloud comes
            self._check_pinned_cut()
        self._rebuild()

    def on_card(self, card: ModelCard) -> None:
        self.index = card.index
        units = len(self.graph.units)
        if card.error:
            self.problem = card.error
        elif card.digest != self.graph.digest:
            self.problem = f"the cloud serves {card.digest}, this device holds {self.graph.digest}"
        elif len(card.unit_ms) != units:
            self.problem = f"{len(card.unit_ms)} of {units} units are profiled in the cloud"
        else:
            self.problem = ""
            told = tuple(card.unit_ms), bool(self._tables) and card.tables == self._tables
            if told != (self._cloud_unit_ms, self._same_tables):
                self._cloud_unit_ms, self._same_tables = told
                self.news = "a new profile of the cloud"
                self._rebuild()

    def on_measured(
        self, profile: Profile | None, gate: Gate | None, wide_cuts: Sequence[Cut] | None
    ) -> None:
        """None leaves what is there."""
        timed = profile is not None and profile is not self.profile
        self.news = "a new profile of this device" if timed else "more is known of its cuts and codecs"
        self.profile = profile or self.profile
        self._gate = gate or self._gate
        self._wide_cuts = self._wide_cuts if wide_cuts is None else tuple(wide_cuts)
        self._rebuild()

    def check_pin(self, pin: Pin) -> None:
        """Raises PlanError when a constraint excludes the row, or when the codecs are no candidate."""
        pin.check(self._name, self._all, self.excluded, self._menu)

    def scores(self, objective: Objective, conditions: Conditions, largest_message_bytes: float) -> Scores:
        """What the rows cost, ``inf`` for one that cannot be sent now; or for the local one, where another
        cut is pinned and can be."""
        scores = objective.score(self.rows, conditions)
        largest = min(largest_message_bytes, self._most_bytes) / conditions.batch
        if self.rows.largest_payload_bytes > largest:
            scores = scores._replace(cost=np.where(self.rows.payload_bytes > largest, np.inf, scores.cost))
        if self._local_is_last_resort and np.isfinite(scores.cost[self.rows.remote]).any():
            scores = scores._replace(cost=np.where(self.rows.remote, scores.cost, np.inf))
        return scores

    def explain(
        self,
        objective: Objective,
        conditions: Conditions,
        power: Power | None,
        largest_message_bytes: float,
    ) -> Explanation:
        return explain(
            self._all,
            self.graph,
            conditions,
            objective=objective,
            constraints=self._constraints,
            gate=self._gate,
            power=power,
            largest_message_bytes=largest_message_bytes,
        )

    def _rebuild(self) -> None:
        cuts = (*self.graph.cuts, *self._wide_cuts)
        self._all = build_rows(self.graph, self.profile, self._cloud_unit_ms, self._menu, cuts)
        self.rows, self.excluded = constrain(self._all, self.graph, self._constraints, self._gate)

    @property
    def _menu(self) -> tuple[Codec, ...]:
        codecs = self._constraints.codecs or (FAITHFUL if self._gate is None else tuple(Codec))
        if self._same_tables:
            return codecs
        return tuple(codec for codec in codecs if not codec.form.is_transform)

    def _check_pinned_cut(self) -> None:
        """Constraints do not depend on times: any cloud will do."""
        rows = build_rows(self.graph, self.profile, self.profile.unit_ms, self._menu)
        constrain(rows, self.graph, self._constraints, self._gate)
