"""What a plan must not do, whatever it costs: rows are taken out, each with the reason.

The local row breaks no constraint, so that only a pinned cut can make constraints impossible together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from shared.codec import Codec
from shared.errors import PlanError
from shared.plan.gate import Fidelity, Gate
from shared.plan.rows import Rows
from shared.tensor import SymbolicSpec

if TYPE_CHECKING:
    from shared.graph.ir import Cut, Graph

__all__ = ["Constraints", "Excluded", "constrain", "keeps_input"]

_ASPECT_TOLERANCE = 0.3  # in log: what padding and strides do to height over width


@dataclass(frozen=True, slots=True)
class Constraints:
    """``codecs``: all that may be used, None for what was measured.  ``min_agreement`` must have been
    shown of every pair when there is a gate, and is asked of none without.  ``input_never_leaves``: True for
    :func:`keeps_input`, or the name of the unit that must have run on the device.  ``max_uplink_bytes``
    is per request at batch 1.  ``cut`` pins one.
    """

    codecs: tuple[Codec, ...] | None = None
    min_agreement: float = 0.99
    input_never_leaves: bool | str = False
    max_uplink_bytes: int | None = None
    cut: int | None = None


@dataclass(frozen=True, slots=True)
class Excluded:
    """One row that is no candidate: its number among all rows, and why, naming the constraint."""

    row: int
    reason: str


def constrain(
    rows: Rows, graph: Graph, constraints: Constraints, gate: Gate | None = None
) -> tuple[Rows, tuple[Excluded, ...]]:
    """The rows that keep every constraint, with the infidelity that the gate knows of, and the others.

    The local row stays unless another cut is pinned; even then it is kept, as what is left when the cloud
    cannot be reached.  Raises PlanError when a named unit does not exist, or when a pinned cut has no row
    left: the message names the constraint in its way and the nearest value that would do.
    """
    if gate is None and constraints == Constraints(min_agreement=constraints.min_agreement):
        return rows, ()
    private = _private_cuts(rows.cuts, graph, constraints.input_never_leaves)
    keep = np.ones(len(rows), dtype=np.bool_)
    excluded = []
    infidelity = rows.infidelity.copy()
    for row in range(len(rows)):
        if row == rows.local:
            continue
        fidelity = None if gate is None else gate.fidelity(rows.cut_of(row).live, *rows.codecs_of(row))
        if fidelity is not None:
            infidelity[row] = 1.0 - fidelity.shown
        reason = _reason(rows, row, constraints, gate, fidelity, private)
        if reason:
            keep[row] = False
            excluded.append(Excluded(row, reason))
    kept = replace(rows, infidelity=infidelity).select(keep)
    if constraints.cut is not None:
        _check_pinned(rows, kept, graph, constraints, gate, private)
    return kept, tuple(excluded)


def keeps_input(graph: Graph, cut: Cut) -> bool:
    """Whether no tensor that crosses has the input's resolution.

    Of an input with positions (pixels, samples, tokens) a tensor that crosses must have fewer, so that at
    least the first unit that reduces them has run on the device; inputs and views of them never cross.
    Positions are counted generously where a shape may be read in two ways, so that what passes is rather
    too late a cut than too early.
    """
    flow = graph.flow
    plane = min((_input_plane(graph.values[slot]) for slot in graph.inputs), key=math.prod)
    return not any(
        flow.root(slot) in graph.inputs or _positions(graph.values[slot], plane) >= math.prod(plane)
        for slot in cut.live
    )


def _private_cuts(cuts: Sequence[Cut], graph: Graph, rule: bool | str) -> list[bool]:
    if rule is False:
        return [True] * len(cuts)
    if rule is True:
        return [not cut.cloud_units or keeps_input(graph, cut) for cut in cuts]
    units = {unit.name: unit.index for unit in graph.units}
    if rule not in units:
        near = [name for name in units if rule in name] or list(units)
        raise PlanError(
            f"input_never_leaves names {rule!r}, which is no unit of {graph.name}; "
            f"there are, for example: {', '.join(near[:5])}"
        )
    inputs = set(graph.inputs)
    return [
        units[rule] in cut.edge_units and not any(graph.flow.root(slot) in inputs for slot in cut.live)
        for cut in cuts
    ]


def _reason(
    rows: Rows,
    row: int,
    constraints: Constraints,
    gate: Gate | None,
    fidelity: Fidelity | None,
    private: Sequence[bool],
) -> str:
    """Why a row is no candidate; empty when it is one."""
    cut = rows.cut_of(row)
    if constraints.cut is not None and cut.index != constraints.cut:
        return f"cut: pinned to {constraints.cut}"
    if not private[int(rows.cut[row])]:
        return "input_never_leaves: the input could be read from what crosses here"
    if constraints.codecs is not None and not _are_allowed(rows, row, constraints.codecs):
        return "codecs: not among those allowed"
    if gate is not None:
        if fidelity is None:
            return "not judged yet: unlikely to win, so an agent judges it while nobody waits"
        if fidelity.shown < constraints.min_agreement:
            needed = fidelity.needed(gate.key.agreement, constraints.min_agreement)
            return f"min_agreement: {_too_little(fidelity, constraints.min_agreement, needed)}"
    payload = rows.payload_bytes[row]
    if constraints.max_uplink_bytes is not None and payload > constraints.max_uplink_bytes:
        return f"max_uplink_bytes: {payload:.0f} bytes are more than {constraints.max_uplink_bytes}"
    return ""


def _too_little(fidelity: Fidelity, enough: float, needed: int | None) -> str:
    if fidelity.at_least is None:
        return f"{fidelity.agreement:.3f} is below {enough:.3f}"
    shown = (
        f"{fidelity.agreement:.3f} on {fidelity.samples} inputs shows {fidelity.at_least:.4f} only, "
        f"below {enough:.3f}"
    )
    return shown if needed is None else f"{shown}; some {needed} such inputs might show it"


def _are_allowed(rows: Rows, row: int, allowed: Sequence[Codec]) -> bool:
    """Whether a row's codecs may be used.  For a tensor of a mix that is not of floats, any codec with its
    entropy stage is the same."""
    if rows.mix[row] < 0:
        return rows.codec_of(row) in allowed
    stages = {codec.stage for codec in allowed}
    return all(
        codec in allowed or (slot not in rows.float_slots and codec.stage in stages)
        for slot, codec in zip(rows.cut_of(row).live, rows.codecs_of(row), strict=True)
    )


def _check_pinned(
    rows: Rows,
    kept: Rows,
    graph: Graph,
    constraints: Constraints,
    gate: Gate | None,
    private: Sequence[bool],
) -> None:
    index = constraints.cut
    assert index is not None
    if not 0 <= index < len(graph.cuts):
        raise PlanError(f"cut {index} is pinned, but {graph.name} has cuts 0 to {len(graph.cuts) - 1}")
    cut = graph.cuts[index]
    at_cut = [row for row in range(len(rows)) if rows.cut_of(row).index == index]
    if not cut.cloud_units or not at_cut or any(kept.cut_of(row).index == index for row in range(len(kept))):
        return
    pinned = f"cut {index} ({cut.name}) is pinned, but"
    if not private[int(rows.cut[at_cut[0]])]:
        allowed = [
            other.index for other, keeps in zip(rows.cuts, private, strict=True) if keeps and other.index >= 0
        ]
        nearest = min(allowed, key=lambda other: (abs(other - index), other))
        raise PlanError(
            f"{pinned} input_never_leaves forbids it; the nearest possible is cut {nearest} "
            f"({graph.cuts[nearest].name})"
        )
    if constraints.codecs is not None:
        at_cut = [row for row in at_cut if _are_allowed(rows, row, constraints.codecs)]
        if not at_cut:
            there = ", ".join(
                rows.codec_of(row).label
                for row in range(len(rows))
                if rows.cut_of(row).index == index and rows.mix[row] < 0
            )
            raise PlanError(f"{pinned} none of the allowed codecs can be used there; possible are {there}")
    if gate is not None:
        agreements = {
            row: 0.0 if fidelity is None else fidelity.shown
            for row in at_cut
            for fidelity in [gate.fidelity(cut.live, *rows.codecs_of(row))]
        }
        at_cut = [row for row in at_cut if agreements[row] >= constraints.min_agreement]
        if not at_cut:
            raise PlanError(
                f"{pinned} no allowed codec reaches min_agreement {constraints.min_agreement:.3f} there; "
                f"the nearest possible is {max(agreements.values()):.3f}"
            )
    least = min(rows.payload_bytes[row] for row in at_cut)
    raise PlanError(
        f"{pinned} its payload exceeds max_uplink_bytes {constraints.max_uplink_bytes}; "
        f"the nearest possible is {least:.0f}"
    )


def _sizes(spec: SymbolicSpec) -> list[int]:
    """The sizes at batch 1, without the batch."""
    return [per + fixed for per, fixed in spec.dims if (per, fixed) != (1, 0)]


def _input_plane(spec: SymbolicSpec) -> tuple[int, int]:
    """Height and width of an image, whose smallest dimension is the colours; else positions and 1."""
    sizes = _sizes(spec)
    if len(sizes) < 3:
        return max(sizes, default=1), 1
    colours = sizes.index(min(sizes))
    rest = sizes[:colours] + sizes[colours + 1 :]
    return math.prod(rest[:-1]), rest[-1]


def _positions(spec: SymbolicSpec, plane: tuple[int, int]) -> int:
    """Height times width, channels first or last, whichever has the input's aspect; both or none of them:
    the larger.  The longest dimension where there are fewer than three."""
    sizes = _sizes(spec)
    if len(sizes) < 3:
        return max(sizes, default=1)
    readings = [(math.prod(sizes[1:-1]), sizes[-1]), (math.prod(sizes[:-2]), sizes[-2])]
    aspect = plane[0] / plane[1]
    alike = [each for each in readings if abs(math.log(each[0] / each[1] / aspect)) < _ASPECT_TOLERANCE]
    return max(math.prod(each) for each in alike or readings)
