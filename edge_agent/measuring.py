"""What is measured of a network before it serves: read from the cache directory, or measured and kept.

Everything here runs torch, in the thread of the runner, and what takes long goes in steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.calibration import Calibration
from shared.codec import Form
from shared.graph import Cut, Program
from shared.plan.fidelity import MOST_SAMPLES, agreement_of, gate_steps
from shared.plan.gate import Gate, GateKey, load_gate, save_gate
from shared.plan.measure import profile_steps
from shared.plan.profile import Profile, ProfileKey, load_profile, save_profile
from shared.plan.steps import Steps
from shared.plan.worth import Worth

if TYPE_CHECKING:
    from shared.codec.transform import TransformTables

__all__ = ["Question", "gate_of", "kept_gate", "kept_profile", "profile_of"]

log = logging.getLogger("suture.agent")


@dataclass(frozen=True, slots=True)
class Question:
    """Whether ``forms`` leave ``enough`` answers as they are at ``cuts``, at all topological ones when None.

    Inputs are asked until it is known of each pair, or there are no more of them; all are when ``enough`` is
    None.  With ``worth`` only those pairs are judged that it names.
    """

    forms: Sequence[Form]
    enough: float | None
    cuts: Sequence[Cut] | None = None
    worth: Worth | None = None


def profile_of(
    program: Program,
    calibration: Calibration,
    key: ProfileKey,
    cache_dir: Path,
    *,
    repeats: int,
    clock: Callable[[], float],
    tables: Mapping[int, TransformTables],
) -> Steps[Profile]:
    """What the network costs here.  Units are timed on the first calibration input."""
    kept = kept_profile(program, key, cache_dir)
    if kept is not None:
        return kept
    profile = yield from profile_steps(
        program,
        calibration.samples,
        key,
        repeats=repeats,
        tables=tables,
        fitted=calibration.fitted,
        clock=clock,
    )
    _warn(save_profile(cache_dir, profile))
    return profile


def kept_profile(program: Program, key: ProfileKey, cache_dir: Path) -> Profile | None:
    kept, warning = load_profile(cache_dir, key, len(program.graph.units))
    _warn(warning)
    return kept


def gate_of(
    program: Program,
    calibration: Calibration,
    cache_dir: Path,
    question: Question,
    tables: Mapping[int, TransformTables],
    known: Gate | None = None,
) -> Steps[Gate]:
    """What lossy forms do to the answer.  ``known`` stands for what the cache holds, and is part of it.

    The forms of the transform are judged where there are ``tables``, on inputs that these were not fitted to.
    """
    if known is None:
        known = kept_gate(program, calibration, cache_dir)
    gate = known
    most = _most_samples(calibration)
    unseen = most if calibration.synthetic else most - len(calibration.fitted)
    for transform, samples, count in (
        (False, calibration.stream(), most),
        (True, calibration.unfitted(), unseen if tables else 0),
    ):
        forms = [form for form in question.forms if form.is_transform == transform]
        if forms and count:
            gate = yield from gate_steps(
                program,
                samples,
                gate.key,
                forms=forms,
                cuts=question.cuts,
                known=gate,
                tables=tables,
                enough=question.enough,
                most=count,
                worth=question.worth,
            )
    if gate != known:
        _warn(save_gate(cache_dir, gate))
    return gate


def _most_samples(calibration: Calibration) -> int:
    """How many inputs there are to judge a pair on, or may be made up for it."""
    return MOST_SAMPLES if calibration.synthetic else len(calibration.samples)


def kept_gate(program: Program, calibration: Calibration, cache_dir: Path) -> Gate:
    """What the cache holds; without it a gate that passes nothing lossy."""
    graph = program.graph
    key = GateKey(graph.digest, calibration.name, agreement_of(graph), program.mode)
    kept, warning = load_gate(cache_dir, key)
    _warn(warning)
    return Gate(key, 0, {}) if kept is None else kept


def _warn(warning: str | None) -> None:
    if warning is not None:
        log.warning("%s", warning)
