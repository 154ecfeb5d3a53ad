"""Batch curves to compare ways of batching on: recorded ones of GPUs, for a network that was measured here.

The times of whole batches are those that NVIDIA published for ResNet-50 v1.5 in PyTorch, container 21.03,
FP32, in the README of DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5 ("Latency Avg").
What nobody published is how they divide among the units.  At batch 1 such a GPU hardly computes: it waits
for kernels to be launched, one after the other, so that every unit has the same share.  What a larger
batch takes beyond that is arithmetic, and divides as the units' times on this machine's processor do.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloud_cluster.curves import BatchCurves

__all__ = ["RECORDED", "spread_over_units"]

RECORDED: dict[str, dict[int, float]] = {
    "V100": {1: 10.37, 2: 10.24, 4: 10.46, 8: 11.5, 16: 16.07},
    "T4": {1: 10.7, 2: 11.26, 4: 12.73, 8: 22.41, 16: 39.77},
}
"""ms of a whole batch, by GPU and samples."""


def spread_over_units(whole_ms: dict[int, float], work: Sequence[float]) -> BatchCurves:
    """Curves of as many units as ``work`` has, which add up to ``whole_ms``; ``work`` is in any unit.

    A batch that was quicker than a smaller one counts as just as quick.
    """
    launch_ms = whole_ms[1]
    total = sum(work)
    rows = [
        tuple(launch_ms / len(work) + max(ms - launch_ms, 0.0) * part / total for part in work)
        for ms in whole_ms.values()
    ]
    return BatchCurves(tuple(whole_ms), tuple(rows))
