"""What the accuracy gate is asked of a network, and in which order.

At a start only what a plan for the network's own objective could choose is judged, so that the first request
need not wait for more; everything else that the constraints leave follows while nobody waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edge_agent.measuring import Question
from shared.codec import Codec, Form
from shared.plan.constraints import Constraints, constrain
from shared.plan.objective import BestFidelity, Objective
from shared.plan.profile import Profile
from shared.plan.rows import build_rows
from shared.plan.worth import Worth

if TYPE_CHECKING:
    from shared.graph.ir import Cut, Graph

__all__ = ["first_question", "later_questions", "lossy_forms"]

_CUTS_AT_ONCE = 8
"""Judged together later on: enough to share the network's runs, few enough to have news soon."""


def lossy_forms(constraints: Constraints) -> tuple[Form, ...]:
    """Those of the codecs that may be used: what the accuracy gate is about."""
    codecs = constraints.codecs or tuple(Codec)
    return tuple(form for form in Form if form is not Form.EXACT and any(c.form is form for c in codecs))


def first_question(
    graph: Graph,
    profile: Profile,
    constraints: Constraints,
    objective: Objective,
    *,
    cloud_unit_ms: Sequence[float] | None = None,
    wide_cuts: Sequence[Cut] = (),
) -> Question:
    """About the pairs that could be best somewhere, with a cloud whose units take their time in the
    proportions of ``cloud_unit_ms``, of the device's own when None.  Where a cut is pinned, about all there.

    Raises PlanError for constraints that are impossible together, whatever the gate says.
    """
    cuts = (*graph.cuts, *wide_cuts)
    menu = constraints.codecs or tuple(Codec)
    unit_ms = profile.unit_ms
    if cloud_unit_ms is not None and sum(cloud_unit_ms) > 0:
        as_slow = sum(unit_ms) / sum(cloud_unit_ms)
        unit_ms = tuple(ms * as_slow for ms in cloud_unit_ms)
    rows = build_rows(graph, profile, unit_ms, menu, cuts)
    kept, _ = constrain(rows, graph, constraints)
    worth = Worth(kept, objective)
    pinned = constraints.cut is not None
    return Question(
        lossy_forms(constraints), constraints.min_agreement, worth.cuts, None if pinned else worth
    )


def later_questions(first: Question, objective: Objective) -> Iterator[Question]:
    """About all the others at the same cuts, some cuts at a time; where plans compare what is good enough by
    how good it is, as closely as the inputs can show."""
    cuts = first.cuts or ()
    enough = None if isinstance(objective, BestFidelity) else first.enough
    for start in range(0, len(cuts), _CUTS_AT_ONCE):
        yield Question(first.forms, enough, cuts[start : start + _CUTS_AT_ONCE])
