"""Batch curves of a network on this replica: from the cache, or measured now."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cloud_cluster.curves import BatchCurves
from shared.config import ServedModelConfig
from shared.graph import Graph, Program
from shared.models import Example
from shared.plan.profile import Profile, ProfileKey, load_profile, save_profile

__all__ = ["first_samples", "measured_curves"]

log = logging.getLogger("suture.tail")

_GAIN = 0.05
"""A larger batch that does not save so much of the time per sample is no gain."""

_SIZES_WITHOUT_GAIN = 2
_TIME_FOR_A_SIZE_S = 2.0
_FEWEST_REPEATS = 3


def measured_curves(
    program: Program,
    sample: Sequence[torch.Tensor],
    source: ServedModelConfig,
    cache_dir: Path | None,
    repeats: int,
    max_batch: int,
    precision: str = "float32",
) -> BatchCurves:
    """The median time of every unit at batch 1 and at powers of two up to ``max_batch``.

    ``sample`` is a call at batch 1.  Larger sizes are left out once two in a row have saved nothing over
    the best smaller one, and when a batch does not fit into memory: the last size is the largest there is
    room for.
    """
    rows: list[tuple[float, ...]] = []
    sizes: list[int] = []
    best, without_gain = float("inf"), 0
    for size in _sizes(max_batch):
        row = _row(program, sample, source, cache_dir, repeats, size, precision)
        if row is None:
            break
        sizes.append(size)
        rows.append(row)
        per_sample = sum(row) / size
        log.info("%s: %.2f ms a sample in a batch of %d", program.graph.name, per_sample, size)
        without_gain = without_gain + 1 if per_sample > (1 - _GAIN) * best else 0
        best = min(best, per_sample)
        if without_gain == _SIZES_WITHOUT_GAIN:
            break
    return BatchCurves(tuple(sizes), tuple(rows))


def first_samples(graph: Graph, example: Example) -> list[torch.Tensor]:
    """The example call, at batch 1 where the network has a batch dimension."""
    args, kwargs = example
    leaves = []
    for slot, leaf in zip(graph.inputs, graph.flatten(args, kwargs), strict=True):
        dims = graph.values[slot].dims
        if graph.dynamic_batch and dims and dims[0][0]:
            per_batch, fixed = dims[0]
            leaf = leaf[: per_batch + fixed]
        leaves.append(leaf)
    return leaves


def _sizes(max_batch: int) -> list[int]:
    sizes = [1]
    while sizes[-1] < max_batch:
        sizes.append(min(2 * sizes[-1], max_batch))
    return sizes


def _row(
    program: Program,
    sample: Sequence[torch.Tensor],
    source: ServedModelConfig,
    cache_dir: Path | None,
    repeats: int,
    size: int,
    precision: str,
) -> tuple[float, ...] | None:
    """One size; None when there is no memory for it."""
    graph = program.graph
    inputs = "units" if size == 1 else f"units at batch {size}"
    if precision != "float32":
        inputs = f"{inputs} in {precision}"
    key = ProfileKey(graph.digest, source.device, source.torch_threads, torch.__version__, calibration=inputs)
    if cache_dir is not None:
        kept, warning = load_profile(cache_dir, key, len(graph.units))
        if warning is not None:
            log.warning("%s", warning)
        if kept is not None:
            return kept.unit_ms
    leaves = [_repeated(graph, slot, leaf, size) for slot, leaf in zip(graph.inputs, sample, strict=True)]
    try:
        began = time.perf_counter()
        program.unit_times(leaves, 1)
        if size > 1:
            within_time = int(_TIME_FOR_A_SIZE_S / max(time.perf_counter() - began, 1e-6))
            repeats = max(min(repeats, within_time), _FEWEST_REPEATS)
        times = program.unit_times(leaves, repeats, time.perf_counter)
    except RuntimeError as error:
        # torch.OutOfMemoryError is one; on a CPU it is a plain one.
        if size == 1:
            raise
        log.warning("%s: no batches of %d: %s", graph.name, size, error)
        return None
    medians = tuple(statistics.median(unit) for unit in times)
    if cache_dir is not None:
        spreads = tuple(_half_quartiles(unit) for unit in times)
        profile = Profile(key, medians, spreads, sum(medians), sum(spreads), repeats, {})
        warning = save_profile(cache_dir, profile)
        if warning is not None:
            log.warning("%s", warning)
    return medians


def _repeated(graph: Graph, slot: int, leaf: torch.Tensor, size: int) -> torch.Tensor:
    grows = [dim for dim, (per_batch, _) in enumerate(graph.values[slot].dims) if per_batch]
    return torch.cat([leaf] * size, grows[0]) if grows and size > 1 else leaf


def _half_quartiles(samples: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(samples, n=4)
    return (high - low) / 2
