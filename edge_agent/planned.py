"""One network as the controller sees it: what is known of it, and the decision that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edge_agent.candidates import UNTOLD, Candidates
from edge_agent.caution import Caution
from edge_agent.corrections import Corrections
from edge_agent.decision import Decision, place_of, why_switched
from edge_agent.estimate import LinkEstimate
from edge_agent.load_merge import MergedLoad
from edge_agent.patience import Patience
from edge_agent.pin import Pin, within
from edge_agent.reported import ReportedLoad
from shared.codec import Codec
from shared.errors import PlanError
from shared.plan.constraints import Constraints
from shared.plan.energy import Power
from shared.plan.explain import Explanation, objective_name
from shared.plan.gate import Gate
from shared.plan.latency import Conditions
from shared.plan.objective import Latency, Objective, Scores, with_backlog
from shared.plan.profile import Profile
from shared.plan.rows import Rows
from shared.plan.solve import Choice, choose
from shared.plan.stages import Stage

if TYPE_CHECKING:
    from shared.graph.ir import Cut, Graph
    from shared.wire.messages import ModelCard, ModelLoad

__all__ = ["LATENCY", "UNCONSTRAINED", "LinkState", "PlannedModel"]

LATENCY = Latency()
UNCONSTRAINED = Constraints()

_RESOLVE_MS = 250.0
"""How long a decision stands without an event: what was learned from requests fades with time."""

_DWELL_MS = 2000.0
_STEADY_GAIN = 0.01
"""A row that is better by less than the hysteresis is taken once one has been, by this, for the dwell."""


class LinkState(NamedTuple):
    """What all networks of an agent share."""

    connected: bool
    estimate: LinkEstimate
    max_message_bytes: float


class PlannedModel:
    """Knowledge and decision of one network.  Events are told by the controller, which then solves."""

    def __init__(
        self,
        name: str,
        graph: Graph,
        profile: Profile,
        *,
        hysteresis: float = 0.05,
        objective: Objective = LATENCY,
        constraints: Constraints = UNCONSTRAINED,
        gate: Gate | None = None,
        power: Power | None = None,
        patience: Patience | None = None,
        tables: str = "",
    ) -> None:
        self.name = name
        self.graph = graph
        self.corrections = Corrections()
        self.decision: Decision | None = None
        self.objective = objective
        self._hysteresis = hysteresis
        self._power = power
        self._candidates = Candidates(name, graph, profile, constraints, gate, tables)
        self._pinned: Pin | None = None
        self._decided_under: Conditions | None = None
        self._decided_wait_ms = 0.0
        self.patience = patience or Patience(0.0)
        self._valid_until_ms = -math.inf
        self._better_since_ms: float | None = None
        self._batches: dict[int, Decision] = {}
        self.on_connected()

    # -- events

    def on_connected(self) -> None:
        """Forget what an earlier connection taught of the cloud's state."""
        self._reported = ReportedLoad()
        self._had_load = False
        self.caution = Caution()
        self.corrections.on_connected()

    def on_card(self, card: ModelCard) -> None:
        self._candidates.on_card(card)

    def on_measured(
        self, profile: Profile | None, gate: Gate | None, wide_cuts: Sequence[Cut] | None
    ) -> None:
        """Better knowledge of this device, the codecs' fidelity or the cuts; None leaves what is there.

        What requests taught of predicted times says nothing of measured ones.
        """
        if profile is not None and profile.predicted != self._candidates.profile.predicted:
            self.corrections = Corrections()
        self._candidates.on_measured(profile, gate, wide_cuts)

    def on_load(self, merged: MergedLoad) -> None:
        self._reported.on_load(merged)

    def is_load_of(self, load: ModelLoad) -> bool:
        """Whether a load of this name is that of the version on the card, and not of another one."""
        known = self._candidates.index
        return UNTOLD in (load.index, known) or load.index == known

    def on_answered(self, latency_ms: float, cloud_ms: float, now_ms: float) -> None:
        self.caution.on_answered()
        self._reported.on_answered(latency_ms, cloud_ms, now_ms)

    def pin(self, cut: Cut, *codecs: Codec) -> None:
        """One codec for all tensors of the cut, or one for each.  Raises PlanError when a constraint
        excludes the row, or when the codecs for each are no candidate."""
        pin = Pin(cut, codecs)
        self._candidates.check_pin(pin)
        self._pinned = pin
        self._valid_until_ms = -math.inf

    def unpin(self) -> None:
        self._pinned = None
        self._valid_until_ms = -math.inf

    @property
    def rows(self) -> Rows:
        """What may be chosen."""
        return self._candidates.rows

    # -- what follows

    def is_valid(self, now_ms: float) -> bool:
        """Whether the decision still stands: nothing it rests on has become stale since."""
        return now_ms < self._valid_until_ms

    def solve(self, link: LinkState, now_ms: float) -> tuple[Decision, bool]:
        """Decide anew.  Returns the decision and whether it changed the cut or the codec."""
        conditions, problem = self._conditions(link, now_ms)
        scores = self._scores(conditions, link)
        before = self.decision
        previous = None if before is None else self._row_of(before)
        threshold, reason = self._hysteresis, ""
        if self._better_since_ms is not None and now_ms - self._better_since_ms >= _DWELL_MS:
            threshold, reason = min(threshold, _STEADY_GAIN), "better for some time, "
        pinned = self._pinned_row(scores)
        if pinned is not None:
            previous, threshold, reason = pinned, 1.0, "pinned"
        choice = choose(scores, previous, threshold)
        if pinned is None and self._is_hasty(choice, previous, conditions, scores, threshold, now_ms):
            choice = choose(scores, previous, 1.0)

        switched = before is None or (choice.row != self._row_of(before))
        if before is None:
            reason = reason or "first plan"
        elif not switched:
            reason = before.reason
        elif pinned is None:
            reason += self._reason(before, choice.row, conditions, problem)
        if choice.gain <= _STEADY_GAIN or switched:
            self._better_since_ms = None
        elif self._better_since_ms is None:
            self._better_since_ms = now_ms
        reached = self._decided_under is not None and self._decided_under.reachable != conditions.reachable
        if switched or (reached and choice.best == choice.row):  # the cloud came, and changed nothing
            self._decided_under = conditions
            self._decided_wait_ms = self._reported.wait_ms(self._reported.is_fresh(now_ms))
        self._had_load = self._reported.load is not None
        self._batches.clear()
        self._valid_until_ms = now_ms + _RESOLVE_MS
        for change_ms in (self._reported.fresh_until_ms, self.caution.blocked_until_ms):
            if change_ms > now_ms:
                self._valid_until_ms = min(self._valid_until_ms, change_ms)
        self.decision = self._decide(link, conditions, scores, choice, reason, previous, threshold, now_ms)
        return self.decision, switched

    def solve_once(
        self,
        link: LinkState,
        now_ms: float,
        *,
        batch: int = 1,
        deadline_ms: float = math.inf,
        objective: Objective | None = None,
        backlog_ms: float = 0.0,
    ) -> Decision:
        """The optimum for one request, without hysteresis and without a trace in what comes after; the
        fastest row when nothing meets the deadline.  Where latency is the objective, ``backlog_ms`` of work
        that waits for the device count as in :func:`shared.plan.objective.with_backlog`.

        Raises PlanError when the request's own objective sets a limit that no row keeps."""
        ordinary = math.isinf(deadline_ms) and objective is None and not backlog_ms
        if ordinary and batch in self._batches:
            return self._batches[batch]
        conditions, _ = self._conditions(link, now_ms, batch)
        scores = self._scores(conditions, link, objective)
        if objective is not None and scores.unmet:
            raise PlanError(f"{self.name}: {scores.unmet}")
        reason = f"for a batch of {batch}" if objective is None else "for the objective of this request"
        if not math.isinf(deadline_ms):
            scores, reason = within(scores, deadline_ms)
        if backlog_ms and isinstance(objective or self.objective, Latency):
            scores = with_backlog(scores, self.rows, conditions, backlog_ms)
            reason = f"{backlog_ms:.0f} ms of work wait for the device"
        pinned = self._pinned_row(scores)
        threshold = 0.0 if pinned is None else 1.0
        choice = choose(scores, pinned, threshold)
        if self.decision is not None and choice.row == self.decision.row and batch == 1 and objective is None:
            return self.decision
        if pinned is not None:
            reason = "pinned"
        decision = self._decide(
            link, conditions, scores, choice, reason, pinned, threshold, now_ms, objective
        )
        if ordinary:
            self._batches[batch] = decision
        return decision

    def explain(self, link: LinkState, now_ms: float) -> Explanation:
        """Every candidate under the conditions of now."""
        conditions, _ = self._conditions(link, now_ms)
        return self._candidates.explain(self.objective, conditions, self._power, link.max_message_bytes)

    def _decide(
        self,
        link: LinkState,
        conditions: Conditions,
        scores: Scores,
        choice: Choice,
        reason: str,
        previous: int | None,
        threshold: float,
        now_ms: float,
        objective: Objective | None = None,
    ) -> Decision:
        rows, row = self.rows, choice.row
        cut = rows.cut_of(row)
        return Decision(
            model=self.name,
            cut=cut,
            codec=rows.codec_of(row),
            codecs=rows.codecs_of(row),
            place=place_of(cut),
            predicted_ms=float(scores.latency_ms[row]),
            cost=choice.cost,
            unit=scores.unit,
            unmet=scores.unmet,
            objective=objective_name(objective or self.objective),
            calibration=self._candidates.profile.key.calibration.partition(" ")[0],
            profile="predicted" if self._candidates.profile.predicted else "measured",
            power=self._power,
            runner_up=choice.runner_up,
            margin=choice.margin,
            gain=choice.gain,
            reason=reason,
            decided_ms=now_ms,
            conditions=conditions,
            link=link.estimate,
            load_age_ms=now_ms - self._reported.said_ms,
            load_wait_ms=self._reported.wait_ms(self._reported.is_fresh(now_ms)),
            row=row,
            previous=previous,
            threshold=threshold,
            rows=rows,
        )

    def _scores(self, conditions: Conditions, link: LinkState, objective: Objective | None = None) -> Scores:
        return self._candidates.scores(objective or self.objective, conditions, link.max_message_bytes)

    def _conditions(self, link: LinkState, now_ms: float, batch: int = 1) -> tuple[Conditions, str]:
        """The conditions now, and why the cloud cannot be used when it cannot."""
        reported, learned, estimate = self._reported, self.corrections, link.estimate
        fresh = reported.is_fresh(now_ms)
        problem = self._candidates.problem
        if not link.connected:
            problem = "no link to the cloud"
        elif fresh and reported.load is not None and reported.load.ready == 0:
            problem = "no replica is ready"
        elif now_ms < self.caution.blocked_until_ms:
            problem = "the cloud refused work"
        extra_ms = learned.wait_ms(now_ms)
        if not fresh:
            extra_ms = max(0.0, extra_ms)
        conditions = Conditions(
            uplink_bps=estimate.uplink_bps,
            rtt_ms=estimate.rtt_ms,
            wait_ms=max(0.0, reported.wait_ms(fresh) + extra_ms) + self.caution.penalty_ms(now_ms),
            slowdown=reported.slowdown(fresh),
            reachable=not problem,
            downlink_bps=estimate.downlink_bps,
            device=learned.factor(Stage.DEVICE, now_ms),
            encode=learned.factor(Stage.ENCODE, now_ms),
            decode=learned.factor(Stage.DECODE, now_ms),
            cloud=learned.factor(Stage.CLOUD, now_ms),
            network_ms=max(-estimate.rtt_ms, learned.network_ms(now_ms)),
            overhead_ms=max(0.0, learned.overhead_ms(now_ms)),
            batch=batch,
            replicas=reported.replicas,
        )
        return conditions, problem

    def _is_hasty(
        self,
        choice: Choice,
        previous: int | None,
        now: Conditions,
        scores: Scores,
        threshold: float,
        now_ms: float,
    ) -> bool:
        """Whether the row would change for what the load feed tells everyone, at no moment of our own."""
        before = self._decided_under
        # The first report of a connection is no news to act on, but what there is to start from.
        if previous is None or choice.row == previous or before is None or not self._had_load:
            self.patience.passes(now_ms)
            return False
        if before.reachable != now.reachable or not np.isfinite(scores.cost[previous]):
            return False
        news_ms = self._reported.wait_ms(self._reported.is_fresh(now_ms)) - self._decided_wait_ms
        then = replace(now, wait_ms=max(0.0, now.wait_ms - news_ms), slowdown=before.slowdown)
        apart = self.rows.columns[:, previous] - self.rows.columns[:, choice.row]
        by_news = float((now.weights() - then.weights()) @ apart)
        gained_ms = float(scores.latency_ms[previous] - scores.latency_ms[choice.row])
        if by_news <= 0 or gained_ms - by_news > threshold * float(scores.latency_ms[previous]):
            return False
        gain = 1.0 - choice.cost / float(scores.cost[previous])
        return not self.patience.allows(gain, now_ms, now.replicas)

    def _row_of(self, decision: Decision) -> int | None:
        """An earlier decision's row among the rows of now."""
        if decision.rows is self.rows:
            return decision.row
        return self.rows.find(decision.cut, *(decision.codecs or (decision.codec,)))

    def _pinned_row(self, scores: Scores) -> int | None:
        return None if self._pinned is None else self._pinned.row(self.rows, scores)

    def _reason(self, before: Decision, row: int, conditions: Conditions, problem: str) -> str:
        previous = self._row_of(before)
        if problem and row == self.rows.local:
            return problem
        if previous is None or self._decided_under is None:
            return self._candidates.news
        return why_switched(self.rows, previous, row, self._decided_under, conditions, self._candidates.news)
