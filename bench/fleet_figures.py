"""From the outcomes of a simulated fleet to figures: shares over time, and whether they oscillate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.fleet_run import FleetRun

__all__ = ["BIN_MS", "offload_share", "period_figures", "series", "swing"]

BIN_MS = 100.0
"""The period of the load feed: the fastest at which a fleet can turn with the news."""

_LAGS = 100
_CUTS_NAMED = 6


def offload_share(
    moments_ms: NDArray[np.float64], remote: NDArray[np.bool_], from_ms: float, to_ms: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Per bin of BIN_MS the share of requests that were to be offloaded, and how many requests it has.

    A bin without requests has the share of the bin before.
    """
    bins = round((to_ms - from_ms) / BIN_MS)
    inside = (moments_ms >= from_ms) & (moments_ms < from_ms + bins * BIN_MS)
    index = ((moments_ms[inside] - from_ms) // BIN_MS).astype(np.int64)
    total = np.bincount(index, minlength=bins)
    offloaded = np.bincount(index, weights=remote[inside], minlength=bins)
    share = offloaded / np.maximum(total, 1)
    for empty in np.flatnonzero(total == 0):
        share[empty] = share[empty - 1] if empty else 0.0
    return share, total


def swing(share: NDArray[np.float64], requests: NDArray[np.int64]) -> dict[str, float]:
    """How far the share swings about its mean, beyond what chance makes of so many requests a bin.

    ``deviation`` is the standard deviation with that of independent requests taken off.  ``echo`` is the
    largest autocorrelation of the share behind its first zero, where a steady oscillation has nearly 1,
    and ``period_s`` the lag at which it is; both 0 where there is nothing beyond chance.
    """
    mean = float(share.mean())
    chance = float((mean * (1.0 - mean) / np.maximum(requests, 1)).mean())
    beyond = max(float(share.var()) - chance, 0.0)
    figures = {"mean": mean, "deviation": math.sqrt(beyond), "echo": 0.0, "period_s": 0.0}
    if beyond == 0.0:
        return figures
    centred = share - mean
    lags = min(_LAGS, len(share) // 2)
    power = float(centred @ centred) / len(centred)
    correlation = [
        float(centred[: len(centred) - lag] @ centred[lag:]) / (len(centred) - lag) / power
        for lag in range(1, lags)
    ]
    crossing = next((lag for lag, value in enumerate(correlation) if value <= 0), None)
    if crossing is not None and crossing < len(correlation):
        best = max(range(crossing, len(correlation)), key=correlation.__getitem__)
        figures["echo"] = max(correlation[best], 0.0)
        figures["period_s"] = (best + 1) * BIN_MS / 1e3
    return figures


def period_figures(run: FleetRun, from_s: float, to_s: float) -> dict[str, Any]:
    """All figures of the requests that began between two moments; the swing is that of the last third."""
    outcomes = [each for each in run.outcomes if from_s * 1e3 <= each.submitted_ms < to_s * 1e3]
    latency = np.array([each.latency_ms for each in outcomes])
    moments = np.array([each.submitted_ms for each in outcomes])
    remote = np.array([each.remote for each in outcomes], dtype=np.bool_)
    steady_s = to_s - (to_s - from_s) / 3
    figures = swing(*offload_share(moments, remote, steady_s * 1e3, to_s * 1e3))
    samples = [each for each in run.samples if steady_s * 1e3 <= each.at_ms < to_s * 1e3]
    return {
        "requests": len(outcomes),
        "offloaded": figures["mean"],
        "deviation": figures["deviation"],
        "echo": figures["echo"],
        "echo_s": figures["period_s"],
        "p50_ms": float(np.percentile(latency, 50)),
        "p99_ms": float(np.percentile(latency, 99)),
        "missed_share": sum(each.missed for each in outcomes) / len(outcomes),
        "fallback_share": sum(bool(each.fallback) for each in outcomes) / len(outcomes),
        "wait_ms": float(np.mean([each.wait_ms for each in samples])),
        "replicas": samples[-1].ready,
    }


def series(run: FleetRun, points: int = 240) -> dict[str, Any]:
    """The run over time in at most so many points: shares by cut, latency, wait and replicas."""
    seconds = run.plan.seconds
    step_ms = max(seconds * 1e3 / points, BIN_MS)
    bins = math.ceil(seconds * 1e3 / step_ms)
    index = np.array([min(int(each.submitted_ms // step_ms), bins - 1) for each in run.outcomes])
    latency = np.array([each.latency_ms for each in run.outcomes])
    total = np.maximum(np.bincount(index, minlength=bins), 1)
    count = Counter(each.cut for each in run.outcomes)
    local = max((each.cut for each in run.outcomes if not each.remote), default=-1)
    named = sorted(cut for cut, _ in count.most_common(_CUTS_NAMED))
    cuts = np.array([each.cut if each.cut in named else -1 for each in run.outcomes])
    shares: dict[str, list[float]] = {}
    for cut in [*named, -1]:
        label = "device" if cut == local else "other cuts" if cut < 0 else f"cut {cut}"
        counted = np.bincount(index[cuts == cut], minlength=bins) / total
        if cut >= 0 or counted.any():
            shares[label] = _rounded(counted)
    order = np.argsort(index, kind="stable")
    parts = np.split(latency[order], np.searchsorted(index[order], np.arange(1, bins)))
    return {
        "step_s": step_ms / 1e3,
        "share": shares,
        "p50_ms": [round(float(np.median(part)), 1) if len(part) else None for part in parts],
        "p99_ms": [round(float(np.percentile(part, 99)), 1) if len(part) else None for part in parts],
        "wait_ms": _sampled(run, step_ms, bins, "wait_ms"),
        "ready": _sampled(run, step_ms, bins, "ready"),
        "target": _sampled(run, step_ms, bins, "target"),
    }


def _sampled(run: FleetRun, step_ms: float, bins: int, name: str) -> list[float]:
    values: list[list[float]] = [[] for _ in range(bins)]
    for sample in run.samples:
        values[min(int(sample.at_ms // step_ms), bins - 1)].append(getattr(sample, name))
    kept, last = [], 0.0
    for each in values:
        last = sum(each) / len(each) if each else last
        kept.append(round(last, 1))
    return kept


def _rounded(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    return [round(float(value), 3) for value in values]
