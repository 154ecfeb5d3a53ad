"""What is measured of a network before it serves: read from the cache directory, or measured and kept.

Everything here runs torch, in the thread of the runner.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from shared.calibration import Calibration
from shared.codec import Form
from shared.graph import Cut, Program
from shared.plan.fidelity import MOST_SAMPLES, agreement_of, measure_gate, missing
from shared.plan.gate import Gate, GateKey, load_gate, save_gate
from shared.plan.measure import Progress, measure_profile
from shared.plan.profile import Profile, ProfileKey, load_profile, save_profile

__all__ = ["gate_of", "profile_of"]

log = logging.getLogger("suture.agent")


def profile_of(
    program: Program,
    calibration: Calibration,
    key: ProfileKey,
    cache_dir: Path,
    *,
    repeats: int,
    clock: Callable[[], float],
    progress: Progress | None = None,
) -> Profile:
    """What the network costs here.  Units are timed on the first calibration input."""
    kept, warning = load_profile(cache_dir, key, len(program.graph.units))
    _warn(warning)
    if kept is not None:
        return kept
    profile = measure_profile(
        program, calibration.samples, key, repeats=repeats, progress=progress, clock=clock
    )
    _warn(save_profile(cache_dir, profile))
    return profile


def gate_of(
    program: Program,
    calibration: Calibration,
    cache_dir: Path,
    *,
    forms: Sequence[Form],
    enough: float | None,
    cuts: Sequence[Cut] | None = None,
    known: Gate | None = None,
    progress: Progress | None = None,
) -> Gate:
    """What lossy ``forms`` do to the answer at ``cuts``, at all topological ones when None.

    Inputs are asked until it is known of each whether it leaves ``enough`` answers as they are, or there
    are no more of them; all are when that is None.  ``known`` stands for what the cache holds, and is part of the answer.
    """
    graph = program.graph
    key = GateKey(graph.digest, calibration.name, agreement_of(graph), program.mode)
    if known is None:
        known, warning = load_gate(cache_dir, key)
        _warn(warning)
    most = MOST_SAMPLES if calibration.synthetic else len(calibration.samples)
    if known is not None and not missing(
        graph, graph.cuts if cuts is None else cuts, forms, known, enough, most
    ):
        return known
    gate = measure_gate(
        program,
        calibration.stream(),
        key,
        forms=forms,
        cuts=cuts,
        known=known,
        enough=enough,
        most=most,
        progress=progress,
    )
    _warn(save_gate(cache_dir, gate))
    return gate


def _warn(warning: str | None) -> None:
    if warning is not None:
        log.warning("%s", warning)
