"""Why a plan is as it is: every candidate stage by stage, what is excluded and why, and how far the
conditions are from another plan.

An explanation is made for people and may take some milliseconds; the controller itself only chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.plan.constraints import Constraints, constrain
from shared.plan.energy import Power, energy_mj
from shared.plan.gate import Gate
from shared.plan.latency import Conditions, latency_ms, stage_ms
from shared.plan.objective import BestFidelity, Energy, Latency, Objective, Scores, Throughput
from shared.plan.rows import Rows
from shared.plan.solve import Choice, choose, hull
from shared.plan.stages import Stage

if TYPE_CHECKING:
    from shared.graph.ir import Cut, Graph

__all__ = ["QUANTITIES", "Candidate", "Explanation", "Problem", "Switch", "explain", "objective_name", "pose"]

_LATENCY = Latency()
_UNCONSTRAINED = Constraints()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row.  ``stages`` sum to ``latency_ms``, which is ``inf`` for what cannot be reached; ``cost``
    is in the explanation's unit, None for a row that may not be chosen, and ``excluded`` then says why.

    ``cut`` is -1 for a cut that is not topological.  ``energy_mj`` and ``agreement`` are None where
    they are not known.  ``agreement`` is what was seen on so many ``inputs``, ``agreement_shown`` what that
    shows and is held against ``min_agreement``; ``inputs`` is None where nothing had to be measured.
    ``inputs_needed`` is about how many it would take where these were too few, None where more would not do.
    """

    row: int
    place: str
    cut: int
    cut_name: str
    codec: str
    payload_bytes: float
    result_bytes: float
    stages: dict[Stage, float]
    latency_ms: float
    energy_mj: float | None
    agreement: float | None
    agreement_shown: float | None
    inputs: int | None
    inputs_needed: int | None
    cost: float | None
    excluded: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for what is infinite."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["stages"] = {stage.value: ms for stage, ms in self.stages.items()}
        values["latency_ms"] = _plain(self.latency_ms)
        return values


@dataclass(frozen=True, slots=True)
class Switch:
    """With ``quantity`` (a name of :data:`QUANTITIES`) just ``direction`` of ``value``, and all else the
    same, ``row`` wins."""

    quantity: str
    direction: str
    value: float
    row: int

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Explanation:
    """``winner`` and ``runner_up`` index ``candidates``; ``margin`` is what the runner-up costs more.

    ``hull`` are the rows that are the fastest at some uplink; ``unmet`` names a limit of the objective
    that no row keeps, and the nearest possible value.
    """

    model: str
    objective: str
    unit: str
    conditions: Conditions
    candidates: tuple[Candidate, ...]
    winner: int
    runner_up: int | None
    margin: float
    hull: tuple[int, ...]
    switches: tuple[Switch, ...]
    unmet: str

    @property
    def exclusions(self) -> dict[str, int]:
        """Every reason for which rows are excluded, up to its colon, and how many there are."""
        counts: dict[str, int] = {}
        for candidate in self.candidates:
            if candidate.excluded:
                reason = candidate.excluded.partition(":")[0]
                counts[reason] = counts.get(reason, 0) + 1
        return counts

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model,
            "objective": self.objective,
            "unit": self.unit,
            "conditions": {name: _plain(value) for name, value in self.conditions.as_dict().items()},
            "winner": self.winner,
            "runner_up": self.runner_up,
            "margin": _plain(self.margin),
            "unmet": self.unmet,
            "switches": [switch.as_dict() for switch in self.switches],
            "hull": list(self.hull),
            "candidates": [candidate.as_dict() for candidate in self.candidates],
        }


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be chosen from: ``rows`` that keep the constraints, for an objective.

    ``original[row]`` is the row's number among all rows, which is what answers are given in.  ``pinned``
    says that the local row is a last resort only.
    """

    rows: Rows
    original: tuple[int, ...]
    objective: Objective
    largest_payload_bytes: float = math.inf
    pinned: bool = False

    def scores(self, conditions: Conditions) -> Scores:
        scores = self.objective.score(self.rows, conditions)
        barred = self.rows.payload_bytes * conditions.batch > self.largest_payload_bytes
        if self.pinned and (self.rows.remote & ~barred & np.isfinite(scores.cost)).any():
            barred[self.rows.local] = True
        return scores._replace(cost=np.where(barred, np.inf, scores.cost))

    def winner(self, conditions: Conditions) -> int:
        """The row of least cost.  Raises PlanError when there is none."""
        return self.original[choose(self.scores(conditions)).row]


def explain(
    rows: Rows,
    graph: Graph,
    conditions: Conditions,
    *,
    objective: Objective = _LATENCY,
    constraints: Constraints = _UNCONSTRAINED,
    gate: Gate | None = None,
    power: Power | None = None,
    largest_message_bytes: float = math.inf,
) -> Explanation:
    """The whole plan of one network under given conditions.

    ``rows`` are all candidates, before the constraints.  ``power`` gives the energy of every row, also
    where the objective does not ask for it; ``largest_message_bytes`` is what the gateway accepts.
    Raises PlanError for constraints that are impossible.
    """
    problem, reasons = pose(rows, graph, objective, constraints, gate, largest_message_bytes)
    scores = problem.scores(conditions)
    choice = choose(scores)
    latency = latency_ms(rows, conditions)
    energy = None if power is None else energy_mj(rows, conditions, power)
    kept = {row: index for index, row in enumerate(problem.original)}
    candidates = []
    for row in range(len(rows)):
        cost = float(scores.cost[kept[row]]) if row in kept else math.inf
        excluded = reasons.get(row, "")
        if not excluded and not math.isfinite(cost):
            excluded = _why_not(problem, kept[row], conditions)
        cut = rows.cut_of(row)
        fidelity = needed = None
        if gate is not None:
            fidelity = gate.fidelity(cut.live, *rows.codecs_of(row))
        if gate is not None and fidelity is not None and fidelity.shown < constraints.min_agreement:
            needed = fidelity.needed(gate.key.agreement, constraints.min_agreement)
        candidates.append(
            Candidate(
                row=row,
                place=_place_of(cut),
                cut=cut.index,
                cut_name=cut.name,
                codec=rows.label_of(row),
                payload_bytes=float(rows.payload_bytes[row]) * conditions.batch,
                result_bytes=float(rows.result_bytes[row]) * conditions.batch,
                stages=stage_ms(rows, row, conditions),
                latency_ms=float(latency[row]),
                energy_mj=None if energy is None else _plain(float(energy[row])),
                agreement=None if fidelity is None else fidelity.agreement,
                agreement_shown=None if fidelity is None else fidelity.shown,
                inputs=None if fidelity is None else fidelity.samples or None,
                inputs_needed=needed,
                cost=_plain(cost),
                excluded=excluded,
            )
        )
    return _explanation(problem, scores, choice, conditions, graph.name, tuple(candidates))


def pose(
    rows: Rows,
    graph: Graph,
    objective: Objective,
    constraints: Constraints,
    gate: Gate | None = None,
    largest_message_bytes: float = math.inf,
) -> tuple[Problem, dict[int, str]]:
    """The problem, and for every row that a constraint takes out of it the reason."""
    kept, excluded = constrain(rows, graph, constraints, gate)
    reasons = {each.row: each.reason for each in excluded}
    problem = Problem(
        rows=kept,
        original=tuple(row for row in range(len(rows)) if row not in reasons),
        objective=objective,
        largest_payload_bytes=min(largest_message_bytes, constraints.max_uplink_bytes or math.inf),
        pinned=constraints.cut not in (None, rows.cut_of(rows.local).index),
    )
    return problem, reasons


def _explanation(
    problem: Problem,
    scores: Scores,
    choice: Choice,
    conditions: Conditions,
    model: str,
    candidates: tuple[Candidate, ...],
) -> Explanation:
    original = problem.original
    return Explanation(
        model=model,
        objective=objective_name(problem.objective),
        unit=scores.unit,
        conditions=conditions,
        candidates=candidates,
        winner=original[choice.row],
        runner_up=None if choice.runner_up is None else original[choice.runner_up],
        margin=choice.margin,
        hull=tuple(original[row] for row in hull(problem.rows, conditions)),
        switches=tuple(_switches(problem, conditions)),
        unmet=scores.unmet,
    )


def objective_name(objective: Objective) -> str:
    """For people, e.g. ``energy within 200 ms``."""
    if isinstance(objective, Latency):
        return "latency" if objective.energy_mj is None else f"latency within {objective.energy_mj:g} mJ"
    if isinstance(objective, Energy):
        return "energy" if objective.deadline_ms is None else f"energy within {objective.deadline_ms:g} ms"
    if isinstance(objective, BestFidelity):
        return f"fidelity within {objective.deadline_ms:g} ms"
    if isinstance(objective, Throughput):
        return "throughput" if objective.rate_hz is None else f"latency at {objective.rate_hz:g} requests/s"
    return type(objective).__name__.lower()


def _why_not(problem: Problem, row: int, conditions: Conditions) -> str:
    """Why a row that keeps the constraints may not be chosen under these conditions."""
    rows, objective = problem.rows, problem.objective
    payload = float(rows.payload_bytes[row]) * conditions.batch
    if rows.remote[row] and not conditions.reachable:
        return "unreachable: there is no cloud"
    if payload > problem.largest_payload_bytes:
        return f"largest message: {payload:.0f} bytes are more than {problem.largest_payload_bytes:.0f}"
    if problem.pinned and row == rows.local:
        return "cut: another one is pinned; this is what is left without a cloud"
    if isinstance(objective, BestFidelity | Energy) and objective.deadline_ms is not None:
        taken = float(latency_ms(rows, conditions)[row])
        return f"deadline_ms: {taken:.4g} ms are more than {objective.deadline_ms:g}"
    if isinstance(objective, Latency) and objective.energy_mj is not None and objective.power is not None:
        spent = float(energy_mj(rows, conditions, objective.power)[row])
        return f"energy_mj: {spent:.4g} mJ are more than {objective.energy_mj:g}"
    return f"{objective_name(objective)}: does not keep up"


def _place_of(cut: Cut) -> str:
    if not cut.cloud_units:
        return "device"
    return "split" if cut.edge_units else "cloud"


# -- where the next switch lies

QUANTITIES: dict[str, tuple[Callable[[Conditions], float], Callable[[Conditions, float], Conditions]]] = {
    "uplink_mbps": (lambda at: at.uplink_bps / 1e6, lambda at, value: replace(at, uplink_bps=value * 1e6)),
    "rtt_ms": (lambda at: at.rtt_ms, lambda at, value: replace(at, rtt_ms=value)),
    "wait_ms": (lambda at: at.wait_ms, lambda at, value: replace(at, wait_ms=value)),
    "slowdown": (lambda at: at.slowdown, lambda at, value: replace(at, slowdown=value)),
    "device": (lambda at: at.device, lambda at, value: replace(at, device=value)),
}
"""What a plan reacts to: how it is read from conditions, and conditions that differ in it alone.
``device`` is how many times slower the device is than its profile."""

_STEP = 1.5
_REACH = {"uplink_mbps": (1e-3, 1e5), "slowdown": (1e-2, 1e3), "device": (1e-2, 1e3)}
_LONGEST_MS = 60_000.0
_BISECTIONS = 60


def _switches(problem: Problem, conditions: Conditions) -> Iterator[Switch]:
    if not conditions.reachable:
        return
    winner = problem.winner(conditions)
    for quantity, (read, change) in QUANTITIES.items():

        def at(value: float, change: Callable[[Conditions, float], Conditions] = change) -> int:
            return problem.winner(change(conditions, value))

        value = read(conditions)
        low, high = _REACH.get(quantity, (0.0, _LONGEST_MS))
        for direction, way in (
            ("below", _down(value, low)),
            ("above", _up(value, high)),
        ):
            found = _first_change(at, winner, value, way)
            if found is not None:
                yield Switch(quantity, direction, *found)


def _down(value: float, low: float) -> Iterator[float]:
    while low < value:
        value /= _STEP
        if value <= max(low, 1e-6):
            value = low
        yield value


def _up(value: float, high: float) -> Iterator[float]:
    while value < high:
        value = min(max(value * _STEP, 0.1), high)
        yield value


def _first_change(
    winner_at: Callable[[float], int], winner: int, value: float, way: Iterator[float]
) -> tuple[float, int] | None:
    """The first value on the way at which another row wins, and that row.

    Exact for costs that are lines over the quantity (or its inverse), where a row wins on one interval;
    for others a change and its reversal within one step are overlooked.
    """
    inside = value
    for outside in way:
        if winner_at(outside) != winner:
            for _ in range(_BISECTIONS):
                middle = (inside + outside) / 2
                if winner_at(middle) == winner:
                    inside = middle
                else:
                    outside = middle
            return outside, winner_at(outside)
        inside = outside
    return None


def _plain(value: float) -> float | None:
    """JSON has no infinity: None instead."""
    return value if math.isfinite(value) else None
