"""The one-time sweep that a machine's predictor is fitted on; it knows nothing of the application.

Random small networks (:mod:`shared.plan.sweep_networks`) are captured, loaded and run exactly as the
application's own would be, fused units included, and every unit's time is kept with its features.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from shared.graph.capture import capture
from shared.graph.run import load
from shared.plan.features import unit_features
from shared.plan.predict import Sample
from shared.plan.sweep_networks import FAMILIES, sweep_networks

__all__ = ["Progress", "run_sweep", "sweep_size"]

Progress = Callable[[int, int, str], None]
"""Called with how many networks are done, of how many, and the next one's name."""

_WARM_UP = 2


def sweep_size(share: float = 1.0) -> int:
    """How many networks a sweep of this share holds."""
    return sum(max(1, round(share * count)) for _, count in FAMILIES.values())


def run_sweep(
    device: str = "cpu",
    *,
    seed: int = 0,
    share: float = 1.0,
    repeats: int = 8,
    budget_s: float = 240.0,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Sample]:
    """Measure the units of the sweep's networks on this machine, on torch's current number of threads.

    A sample's time is the median over ``repeats`` whole runs after a warm-up.  The networks come in an
    order that mixes the families, so a sweep that reaches ``budget_s`` ends early and evenly.  Raises
    ConfigError when the device is not there.
    """
    samples: list[Sample] = []
    total = sweep_size(share)
    began = clock()
    for done, network in enumerate(sweep_networks(seed, share)):
        if samples and clock() - began > budget_s:
            break
        if progress is not None:
            progress(done, total, network.name)
        captured = capture(network.module, network.args, name=network.name)
        program = load(captured, device)
        leaves = [leaf.to(torch.device(device)) for leaf in captured.graph.flatten(network.args)]
        times = program.unit_times(leaves, _WARM_UP + repeats, clock)
        for features, taken in zip(unit_features(captured.graph), times, strict=True):
            samples.append(Sample(features, statistics.median(taken[_WARM_UP:])))
    if progress is not None:
        progress(total, total, "")
    return samples
