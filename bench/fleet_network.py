"""What the simulated fleet runs: one real network, measured on this machine at the start of the bench."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.config import ModelSource
from shared.graph.ir import Graph
from shared.plan.profile import Profile
from shared.plan.rows import FAITHFUL

__all__ = ["FleetNetwork", "measure_network"]


@dataclass(frozen=True, slots=True)
class FleetNetwork:
    """``profile`` is this machine's, one thread: of a replica as it is, of a device once stretched."""

    name: str
    graph: Graph
    profile: Profile


def measure_network(name: str, cache_dir: Path | None, repeats: int) -> FleetNetwork:
    """Capture, load and profile a network of the zoo.  Takes seconds; imports torch.

    By the processor's time of one thread, which says the same on a machine that does other things as well.
    """
    import time

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
        profile = measure_profile(
            program, calibration.samples[:2], key, repeats=repeats, codecs=FAITHFUL, clock=time.thread_time
        )
    finally:
        torch.set_num_threads(threads)
    return FleetNetwork(name, program.graph, profile)
