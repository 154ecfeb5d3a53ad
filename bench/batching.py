"""What batching across cuts gains: against no batching, and against batching requests of one cut only.

A gateway and a replica in virtual time (``bench/batching_replica.py``): the product's dispatcher, schedule,
planner and batch curves; what is left out is torch and the wire.  The curves are those of networks measured
here, on a processor, where batches save little, and recorded ones of GPUs, where they save much
(``bench/batching_curves.py``).  All three ways get the same requests: the same moments, cuts and deadlines.

Then a replica's schedule with real torch on this machine, the three ways in turns.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.batching_curves import RECORDED, spread_over_units
from bench.batching_live import LiveNetwork
from bench.batching_replica import POLICIES, Ask, Policy, Ran, run_replica
from bench.contract import Bench
from bench.fleet_calibration import stored_hop_ms
from cloud_cluster.curves import BatchCurves
from cloud_cluster.joining import TOLERANCE, Places

__all__ = ["in_time_share", "main", "requests", "throughput_at_limit"]

_RESULTS = Path(__file__).parent / "results"
_RECORDED_NETWORK = "resnet50"
_LIVE = ("mobilenetv2", "alexnet")
_MEASURED = ("mobilenetv2", "alexnet", "bert-encoder", "googlenet")
_QUICK = ("mobilenetv2",)
_BUDGETS = (10.0, 20.0, 40.0)
"""Deadlines, in multiples of what the whole network takes alone."""

_DEVICES = 32
_BURST = 4.0
_LOADS = (0.5, 0.8, 0.95, 1.5, 3.0)
_IN_TIME = 0.99
_LEAST_GAIN, _MOST_LOSS = 1.5, 0.02
_HALVINGS = 8
_MOST_LOAD = 12.0


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("batching", argv, description=(__doc__ or "").partition("\n")[0])
    hop_ms = stored_hop_ms(_RESULTS)
    bench.config = {
        "policies": [policy.name for policy in POLICIES],
        "max_batch": POLICIES[-1].max_batch,
        "hop_ms": hop_ms,
        "devices": _DEVICES,
        "budgets_of_whole": _BUDGETS,
        "burst": _BURST,
        "in_time": _IN_TIME,
        "requests": 400 if bench.quick else 2000,
        "recorded_ms": RECORDED,
        "recorded_network": _RECORDED_NETWORK,
    }
    with tempfile.TemporaryDirectory(prefix="suture-") as scratch:
        names = _QUICK if bench.quick else tuple(dict.fromkeys((*_MEASURED, _RECORDED_NETWORK)))
        networks = {
            name: LiveNetwork.measure(
                name, bench.config["max_batch"], 3 if bench.quick else 10, Path(scratch)
            )
            for name in bench.track(names, "measuring networks")
        }
    _recorded(bench, networks[_RECORDED_NETWORK if _RECORDED_NETWORK in networks else _QUICK[0]], hop_ms)
    for name in _QUICK if bench.quick else _MEASURED:
        _measured(bench, networks[name], hop_ms)
    for name in _QUICK if bench.quick else _LIVE:
        _live(bench, networks[name])
    return bench.finish()


def _recorded(bench: Bench, network: LiveNetwork, hop_ms: float) -> None:
    """Steep curves: the gain."""
    for gpu, whole_ms in RECORDED.items():
        curves = spread_over_units(whole_ms, network.curves.unit_ms[0])
        for cuts, mix in ((network.cuts, "mixed cuts"), ([0], "whole networks")):
            for burst, arrivals in ((1.0, "one by one"), (_BURST, "in bursts")):
                where = f"{gpu}, {mix}, {arrivals}"
                found = _compare(bench, where, curves, network.places, cuts, burst, hop_ms)
                if mix == "mixed cuts":
                    gain = found["across cuts"] / found["none"]
                    bench.target(f"{where}: throughput over none", gain, "x", _LEAST_GAIN, "at_least")
                    over_same = found["across cuts"] / found["same cut"]
                    bench.target(f"{where}: throughput over same cut", over_same, "x", 1.0, "at_least")
                bench.target(
                    f"{where}: in time with none, not across cuts", found["lost"], "requests", 0, "at_most"
                )


def _measured(bench: Bench, network: LiveNetwork, hop_ms: float) -> None:
    """Curves of this machine's processor: no loss."""
    bench.config.setdefault("measured", {})[network.name] = {
        "batches": network.curves.batches,
        "ms_per_sample": [
            network.curves.ms(0, network.curves.units, batch) / batch for batch in network.curves.batches
        ],
        "cuts": [network.program.graph.cuts[cut].name for cut in network.cuts],
    }
    where = f"{network.name} on this processor"
    found = _compare(bench, where, network.curves, network.places, network.cuts, 1.0, hop_ms)
    loss = 1.0 - found["across cuts"] / found["none"]
    bench.target(f"{where}: throughput lost against none", loss, "share", _MOST_LOSS, "at_most")


def _live(bench: Bench, network: LiveNetwork) -> None:
    rounds, seconds = (2, 0.5) if bench.quick else (7, 1.0)
    whole_s = network.curves.ms(0, network.curves.units, 1) / 1e3
    count = max(round(seconds / whole_s), 16)
    with bench.console.status(f"{network.name}: real torch ..."):
        rates, together, worst = network.rates(POLICIES, rounds, count, waiting=16)
    none = statistics.median(rates["none"])
    for name, samples in rates.items():
        bench.row(
            where=f"{network.name}, real torch, 16 waiting",
            batching=name,
            at_limit_per_s=statistics.median(samples),
            over_none=statistics.median(samples) / none,
            batch=together[name],
            samples_per_s=samples,
        )
    # Each round against its own neighbour: what the machine does meanwhile happens to both.
    pairs = zip(rates["across cuts"], rates["none"], strict=True)
    loss = 1.0 - statistics.median(across / alone for across, alone in pairs)
    bench.target(
        f"{network.name}, real torch: throughput lost against none", loss, "share", _MOST_LOSS, "at_most"
    )
    if worst > TOLERANCE:
        bench.unsound(f"{network.name}: an answer in a batch differs from that alone by {worst:.1e}")
    bench.config.setdefault("worst_difference", {})[network.name] = worst


def _compare(
    bench: Bench,
    where: str,
    curves: BatchCurves,
    places: Places,
    cuts: Sequence[int],
    burst: float,
    hop_ms: float,
) -> dict[str, float]:
    """A row for every way to batch.  By way the throughput at the limit, and ``lost``: requests that were
    in time without batching and are not across cuts, at loads that none can carry."""
    count, seed = bench.config["requests"], bench.seed
    capacity = 1e3 / statistics.fmean(curves.ms(cut, curves.units, 1) for cut in cuts)
    by_load: dict[str, list[Ran]] = {}
    found = {"lost": 0.0}
    with bench.console.status(f"{where} ..."):
        for policy in POLICIES:
            by_load[policy.name] = [
                run_replica(curves, places, policy, asks, hop_ms)
                for load in _LOADS
                for asks in (requests(count, load * capacity, burst, curves, cuts, seed),)
            ]
            found[policy.name] = throughput_at_limit(curves, places, policy, cuts, burst, count, seed, hop_ms)
        carried = [load for load in _LOADS if load * capacity <= found["none"]]
        for index in range(len(carried)):
            none, across = by_load["none"][index], by_load["across cuts"][index]
            pairs = zip(none.latency_ms, across.latency_ms, strict=True)
            found["lost"] += sum(alone < math.inf and batched == math.inf for alone, batched in pairs)
    for policy in POLICIES:
        bench.row(
            where=where,
            batching=policy.name,
            at_limit_per_s=found[policy.name],
            over_none=found[policy.name] / found["none"],
            **_at_loads(by_load[policy.name]),
        )
    return found


def _at_loads(runs: Sequence[Ran]) -> dict[str, Any]:
    """Printed are the figures at three times what none can carry, where batches are largest."""
    last = runs[-1]
    answered = [[ms for ms in run.latency_ms if ms < math.inf] for run in runs]
    return {
        "in_time_at_3x": in_time_share(last),
        "batch_at_3x": statistics.fmean(last.batches) if last.batches else None,
        "plan_ms": last.planning_ms / max(last.plans, 1),
        "loads": list(_LOADS),
        "in_time": [in_time_share(run) for run in runs],
        "p50_ms": [float(np.percentile(each, 50)) for each in answered if each],
        "p99_ms": [float(np.percentile(each, 99)) for each in answered if each],
    }


def in_time_share(ran: Ran) -> float:
    return sum(ms < math.inf for ms in ran.latency_ms) / len(ran.latency_ms)


def throughput_at_limit(
    curves: BatchCurves,
    places: Places,
    policy: Policy,
    cuts: Sequence[int],
    burst: float,
    count: int,
    seed: int,
    hop_ms: float,
) -> float:
    """Requests per second up to which 99% of them are answered in time, by bisection."""
    capacity = 1e3 / statistics.fmean(curves.ms(cut, curves.units, 1) for cut in cuts)
    low, high = 0.0, _MOST_LOAD * capacity
    for _ in range(_HALVINGS):
        rate = (low + high) / 2
        asks = requests(count, rate, burst, curves, cuts, seed)
        if in_time_share(run_replica(curves, places, policy, asks, hop_ms)) >= _IN_TIME:
            low = rate
        else:
            high = rate
    return low


def requests(
    count: int, per_s: float, burst: float, curves: BatchCurves, cuts: Sequence[int], seed: int
) -> list[Ask]:
    """Random arrivals: ``burst`` at a time on average, the bursts independent of each other.

    The same seed gives the same requests at another rate, only closer together.
    """
    draw = random.Random(seed)
    whole_ms = curves.ms(0, curves.units, 1)
    asks: list[Ask] = []
    at_ms = 0.0
    while len(asks) < count:
        at_ms += draw.expovariate(per_s / burst) * 1e3
        size = 1
        while draw.random() < 1.0 - 1.0 / burst:
            size += 1
        asks += [
            Ask(at_ms, draw.randrange(_DEVICES), draw.choice(cuts), whole_ms * draw.choice(_BUDGETS))
            for _ in range(size)
        ]
    return asks[:count]


if __name__ == "__main__":
    raise SystemExit(main())
