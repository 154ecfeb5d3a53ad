"""What Ray Serve runs for the scaling bench: the product's application around slower replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from bench.stretch import longer_by_cpu_time
from cloud_cluster.application import TailHost
from cloud_cluster.curves import BatchCurves
from cloud_cluster.executor import BatchExecutor, Executor, Job
from cloud_cluster.joining import Places, Running
from cloud_cluster.precision import FLOAT32, Precision
from cloud_cluster.torch_executor import TorchExecutor
from shared.config import CloudConfig, ServedModelConfig
from shared.graph import Program

__all__ = ["STRETCH", "StretchedExecutor", "StretchedTailHost"]

STRETCH = 32.0
"""How many times slower a replica is than this machine."""


class StretchedExecutor(TorchExecutor):
    """The real network, ``STRETCH`` times slower by :func:`bench.stretch.longer_by_cpu_time`."""

    def __init__(
        self,
        program: Program,
        curves: BatchCurves,
        places: Places | None = None,
        max_batch: int = 1,
        precision: Precision = FLOAT32,
    ) -> None:
        rows = tuple(tuple(ms * STRETCH for ms in row) for row in curves.unit_ms)
        super().__init__(program, BatchCurves(curves.batches, rows), places, max_batch, precision)

    def run(self, parts: Sequence[Job | Any], units: Sequence[int]) -> tuple[Running, float]:
        began_s = time.perf_counter()
        with longer_by_cpu_time(STRETCH):
            running, _ = super().run(parts, units)
        return running, (time.perf_counter() - began_s) * 1e3


class StretchedTailHost(TailHost):
    """As :class:`cloud_cluster.application.TailHost`."""

    async def make_executor(self, model: ServedModelConfig, config: CloudConfig) -> Executor | BatchExecutor:
        return await asyncio.to_thread(
            StretchedExecutor.load, model, config.cache_dir, config.profile_repeats
        )
