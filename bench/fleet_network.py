"""What the simulated fleet runs: one real network, measured on this machine at the start of the bench."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from shared.config import ModelSource
from shared.graph.ir import Graph
from shared.plan.profile import Profile
from shared.plan.rows import FAITHFUL

__all__ = ["FleetNetwork", "measure_network", "stored_hop_ms"]

_HOP_MS = 0.7
"""From the gateway to a replica and back with nothing to compute, where no figure of bench.hop is there."""


@dataclass(frozen=True, slots=True)
class FleetNetwork:
    """``profile`` is this machine's, one thread: of a replica as it is, of a device once stretched."""

    name: str
    graph: Graph
    profile: Profile


def measure_network(name: str, cache_dir: Path | None, repeats: int) -> FleetNetwork:
    """Capture, load and profile a network of the zoo.  Takes seconds; imports torch."""
    import torch

    from shared.calibration import calibrate
    from shared.config import CalibrationConfig
    from shared.graph import load
    from shared.models import resolve
    from shared.plan.measure import measure_profile
    from shared.plan.profile import ProfileKey

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = resolve(ModelSource(name=name), cache_dir)
        program = load(model.captured, mode="fused")
        calibration = calibrate(model, CalibrationConfig())
        key = ProfileKey(program.graph.digest, "cpu", 1, torch.__version__, calibration=calibration.name)
        profile = measure_profile(program, calibration.samples[:2], key, repeats=repeats, codecs=FAITHFUL)
    finally:
        torch.set_num_threads(threads)
    return FleetNetwork(name, program.graph, profile)


def stored_hop_ms(results: Path) -> float:
    """Median ms that gateway and replica add to a request of 150 kB, as bench.hop last kept it here."""
    try:
        rows = json.loads((results / "hop.json").read_text(encoding="utf-8"))["rows"]
    except FileNotFoundError:
        return _HOP_MS
    found = [
        row["p50_ms"]
        for row in rows
        if row["activation"] == "150 kB" and row["path"].endswith("from the gateway on")
    ]
    return float(found[0]) if found else _HOP_MS
