"""How fast and how exact is planning?  ``python -m bench.solver --json FILE [--quick]``.

For every network of the zoo, with its profile as measured here in all codecs, and for random networks of wide
cells (:mod:`bench.nas`), on a cloud CLOUD_FACTOR times faster than the device:

* how long the controller takes to re-solve when the link, the round trip or the load has changed, from the
  event to the decision;
* how much longer than the exact optimum the chosen row takes, over random conditions.  The optimum is over
  every set of units and the codec of every tensor on its own, found by max-flow (:mod:`bench.exact`);
* how long that takes, for comparison, and how many cuts the topological order lacked.

Gaps below RESOLUTION, which is that of the judge's integer capacities, count as none.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bench.contract import Bench
from bench.exact import Judge
from bench.nas import nas_network
from edge_agent.controller import Controller
from shared import zoo
from shared.codec import Codec
from shared.config import CloudLinkConfig, ModelSource
from shared.graph.ir import Graph
from shared.graph.run import load
from shared.models import resolve
from shared.plan.latency import Conditions
from shared.plan.measure import measure_profile
from shared.plan.objective import Latency
from shared.plan.profile import Profile, ProfileKey, load_profile, save_profile
from shared.plan.rows import Rows, build_rows
from shared.plan.solve import choose
from shared.plan.wide import widened_cuts
from shared.wire.messages import LoadReport, ModelCard, ModelLoad

__all__ = ["CLOUD_FACTOR", "RESOLUTION", "Gap", "gaps", "main", "random_conditions", "resolve_us"]

CLOUD_FACTOR = 10.0
CODECS = tuple(codec for codec in Codec if not codec.form.is_transform)
RESOLUTION = 1e-6
NAS_UNITS = (300, 1500)

_QUICK = ("mnist", "senna-pos", "mobilenetv2")
_WARM_UP = 200
_EVENT_MS = 20.0


class Gap(NamedTuple):
    """``exact_ms`` is the least latency there is, ``chosen_ms`` that of the best candidate."""

    chosen_ms: float
    exact_ms: float
    judge_ms: float

    @property
    def share(self) -> float:
        """How much longer the chosen row takes, as a share of the optimum; may be tiny and negative."""
        return self.chosen_ms / self.exact_ms - 1.0


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("solver", argv, description="time and exactness of planning", arguments=_arguments)
    events, conditions, graphs = (500, 20, 1) if bench.quick else (5000, 200, 3)
    names = bench.options.network or (_QUICK if bench.quick else zoo.names())
    torch.set_num_threads(1)
    bench.config = {
        "cloud_factor": CLOUD_FACTOR,
        "codecs": [codec.label for codec in CODECS],
        "events": events,
        "conditions": conditions,
        "resolution": RESOLUTION,
        "profile_repeats": bench.options.repeats,
    }
    for name in bench.track(names, "zoo"):
        graph, profile = measured(name, bench.options.cache_dir, bench.options.repeats)
        examine(bench, "zoo", name, graph, profile, events, conditions)
    units = NAS_UNITS[:1] if bench.quick else NAS_UNITS
    random_networks = [(count, bench.seed + index) for count in units for index in range(graphs)]
    for count, seed in bench.track(random_networks, "random networks"):
        network = nas_network(count, seed)
        kind = f"nas-{count}"
        examine(bench, kind, f"{kind}.{seed}", network.graph, network.profile, events, conditions)
    promise(bench)
    return bench.finish()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", action="append", metavar="NAME", help="only this one of the zoo")
    parser.add_argument("--repeats", type=int, default=5, help="runs behind a unit's measured time")
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="keep profiles and graphs here between runs"
    )


def measured(name: str, cache_dir: Path | None, repeats: int) -> tuple[Graph, Profile]:
    """A network of the zoo and its profile on this machine, with the torch threads of this process."""
    model = resolve(ModelSource(name=name), cache_dir)
    program = load(model.captured)
    key = ProfileKey(
        program.graph.digest, "cpu", torch.get_num_threads(), str(torch.__version__), mode=program.mode
    )
    if cache_dir is not None:
        kept, _ = load_profile(cache_dir, key, len(program.graph.units))
        if kept is not None:
            return program.graph, kept
    leaves = program.graph.flatten(*model.example)
    profile = measure_profile(program, [leaves], key, repeats=repeats, codecs=CODECS)
    if cache_dir is not None:
        save_profile(cache_dir, profile)
    return program.graph, profile


def examine(
    bench: Bench, kind: str, label: str, graph: Graph, profile: Profile, events: int, conditions: int
) -> None:
    """Add the row of one network.

    ``p50_us`` and ``p99_us`` are of a re-solve; ``gap_percent``, ``worst_percent`` are the mean and the
    worst gap, ``topological_percent`` the mean without the ``wide`` cuts; ``flow_ms`` is one max-flow.
    The thousands of re-solves are kept as how often each time was seen, to a tenth of a microsecond.
    """
    cloud_unit_ms = tuple(ms / CLOUD_FACTOR for ms in profile.unit_ms)
    began = time.perf_counter()
    plain = build_rows(graph, profile, cloud_unit_ms, CODECS)
    build_ms = (time.perf_counter() - began) * 1e3
    began = time.perf_counter()
    wide = widened_cuts(graph, profile, cloud_unit_ms, CODECS)
    widen_ms = (time.perf_counter() - began) * 1e3

    controller = Controller(CloudLinkConfig(), log_length=512)
    controller.add_model(graph.name, graph, profile, 0.0, codecs=CODECS)
    card = ModelCard(name=graph.name, digest=graph.digest, index=0, unit_ms=list(cloud_unit_ms), replicas=1)
    controller.on_connected(0.0)
    controller.on_card(card, 0.0)
    controller.on_measured(graph.name, 0.0, wide_cuts=wide)
    samples = resolve_us(controller, graph.name, events, bench.seed)

    rows = controller.rows(graph.name)
    judge = Judge(graph, profile, cloud_unit_ms, CODECS)
    drawn = random_conditions(conditions, bench.seed)
    found = gaps(rows, judge, drawn)
    shares = [settled(gap.share) for gap in found]
    topological = [settled(gap.share) for gap in gaps(plain, judge, drawn)] if wide else shares
    if min(gap.share for gap in found) < -RESOLUTION:
        bench.unsound(f"{label}: the judge missed the optimum, a candidate is faster than it")
    p50, p99 = np.percentile(samples, (50, 99))
    bench.row(
        kind=kind,
        network=label,
        units=len(graph.units),
        wide=len(wide),
        candidates=len(rows),
        p50_us=float(p50),
        p99_us=float(p99),
        gap_percent=100.0 * statistics.fmean(shares),
        worst_percent=100.0 * max(shares),
        topological_percent=100.0 * statistics.fmean(topological),
        flow_ms=statistics.median(gap.judge_ms for gap in found),
        build_ms=build_ms,
        widen_ms=widen_ms,
        times_seen_by_us=Counter(f"{sample:.1f}" for sample in sorted(samples)),
        gaps=shares,
    )


def resolve_us(controller: Controller, name: str, events: int, seed: int) -> list[float]:
    """Microseconds from an event to the decision that follows, spans, pings and load reports in turn."""
    rng = np.random.default_rng(seed)
    reports = _load_reports(name, rng)
    samples = []
    gc.collect()  # the garbage of what came before is not the controller's
    for index in range(_WARM_UP + events):
        now_ms = (index + 1) * _EVENT_MS
        nbytes, mbps = 200_000, float(10 ** rng.uniform(-0.3, 2.3))
        span_ms, rtt_ms = nbytes * 8 / (mbps * 1000), float(10 ** rng.uniform(0, 2))
        report = next(reports)
        began = time.perf_counter_ns()
        if index % 3 == 0:
            controller.on_span(nbytes, span_ms, now_ms)
        elif index % 3 == 1:
            controller.on_rtt(rtt_ms, now_ms)
        else:
            controller.on_load(report, now_ms)
        controller.decide(name, now_ms)
        samples.append((time.perf_counter_ns() - began) / 1e3)
    return samples[_WARM_UP:]


def _load_reports(name: str, rng: np.random.Generator) -> Iterator[LoadReport]:
    sequence = 0
    while True:
        sequence += 1
        wait_ms, slowdown = float(rng.exponential(10.0)), float(2 ** rng.uniform(0, 3))
        load = ModelLoad(
            name=name, ready=1, starting=0, target=1, queue_ms=wait_ms, wait_ms=wait_ms, slowdown=slowdown
        )
        yield LoadReport(gateway="bench", sequence=sequence, models=[load])


def random_conditions(count: int, seed: int) -> list[Conditions]:
    """Links from 0.2 to 200 Mbps, round trips from 1 to 100 ms, idle to busy clouds, a device from twice as
    fast as its profile to ten times slower."""
    rng = np.random.default_rng(seed)
    return [
        Conditions(
            uplink_bps=float(10 ** rng.uniform(5.3, 8.3)),
            rtt_ms=float(10 ** rng.uniform(0, 2)),
            wait_ms=float(rng.exponential(10.0)),
            slowdown=float(2 ** rng.uniform(0, 3)),
            downlink_bps=float(10 ** rng.uniform(5.5, 8.3)),
            device=float(10 ** rng.uniform(-0.3, 1)),
        )
        for _ in range(count)
    ]


def gaps(rows: Rows, judge: Judge, conditions: Sequence[Conditions]) -> list[Gap]:
    """The solver against the judge under each of the conditions, without hysteresis."""
    found = []
    for at in conditions:
        chosen_ms = choose(Latency().score(rows, at)).cost
        began = time.perf_counter()
        exact_ms = judge.best(at).latency_ms
        found.append(Gap(chosen_ms, exact_ms, (time.perf_counter() - began) * 1e3))
    return found


def settled(share: float) -> float:
    return share if share > RESOLUTION else 0.0


def promise(bench: Bench) -> None:
    """Hold the rows against what planning promises."""
    known = [row for row in bench.rows if row["kind"] == "zoo"]
    slowest = max(known, key=lambda row: float(row["p99_us"]))
    bench.target(
        f"re-solve p99, slowest of the zoo ({slowest['network']})",
        slowest["p99_us"],
        "us",
        100.0,
        "at_most",
    )
    widest = max(known, key=lambda row: float(row["worst_percent"]))
    bench.target(
        f"worst gap to the exact optimum, zoo ({widest['network']})",
        widest["worst_percent"],
        "%",
        0.0,
        "at_most",
    )
    for kind in dict.fromkeys(row["kind"] for row in bench.rows if row["kind"] != "zoo"):
        mean = statistics.fmean(row["gap_percent"] for row in bench.rows if row["kind"] == kind)
        bench.target(f"mean gap to the exact optimum, {kind}", mean, "%", 0.1, "at_most")


if __name__ == "__main__":
    sys.exit(main())
