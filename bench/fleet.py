"""Does a fleet oscillate whose devices all hear the same load feed?

A discrete-event simulation in virtual time of the very classes that run in a device and in the cloud:
controller and request table, dispatcher, load meter, batch planner, autoscaling policy.  Only what they
drive (torch, threads, sockets, Serve) is arithmetic, from a real network that is measured at the start
and from what the live benches measured (``bench/fleet_calibration.py``).

Three runs: a fleet of devices and links that are all alike, the hardest case, with more work than its
replicas can take; the same without the damping; and a mixed fleet with autoscaling, to which everything
happens: all devices start at once, others load the cloud, everyone's uplink slows down, the feed is lost.

In a large fleet a device takes in only the last few load reports before each of its decisions.  Whether that
makes a difference is then tried with a small fleet, both ways.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench.contract import Bench
from bench.fleet_calibration import Calibration
from bench.fleet_cloud import CloudPlan
from bench.fleet_device import DeviceClass
from bench.fleet_figures import period_figures, series
from bench.fleet_network import FleetNetwork, measure_network
from bench.fleet_plot import plot_fleet
from bench.fleet_run import Event, FleetPlan, run_fleet
from shared.config import AutoscaleConfig

__all__ = ["main"]

_RESULTS = Path(__file__).parent / "results"
_ALIKE = (DeviceClass("alike", 1.0, 12.0, 20.0, 0.0, 10.0, 300.0),)
_MIXED = (
    DeviceClass("fast", 0.3, 6.0, 30.0, 0.5, 8.0, 250.0),
    DeviceClass("middle", 0.4, 12.0, 20.0, 0.5, 15.0, 300.0),
    DeviceClass("slow", 0.3, 24.0, 10.0, 0.5, 40.0, 500.0),
)
_MOST_DEVIATION = 0.05
_SHARE_TAKEN = 0.43
"""Of the fleet that is alike, the share whose work its replicas can take."""

_FINE_UP_TO, _LAST_REPORTS = 2000, 3
"""In larger fleets a device takes in so many load reports before a decision."""

_CHECK_DEVICES, _CHECK_RATE_HZ, _CHECK_S = 500, 1.0, 20.0
_MOST_APART = 0.03

_LISTENERS = 1000
"""Devices per gateway, which sets the pace of the feed; more gateways are simulated as one dispatcher."""


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("fleet", argv, description=(__doc__ or "").partition("\n")[0], arguments=_arguments)
    devices = bench.options.devices or (400 if bench.quick else 10_000)
    with bench.console.status("measuring the network ..."):
        network = measure_network(bench.options.network, None, 3 if bench.quick else 10)
    found = Calibration.stored(_RESULTS)
    unit_s = sum(network.profile.unit_ms) / 1e3
    rate_hz = bench.options.rate_hz
    seconds = bench.options.seconds or (12.0 if bench.quick else 80.0)
    reports = _LAST_REPORTS if devices > _FINE_UP_TO else None
    listeners = min(devices, _LISTENERS)
    demand = devices * rate_hz * unit_s
    alike = FleetPlan(
        "all alike",
        devices,
        seconds / 4,
        rate_hz,
        _ALIKE,
        CloudPlan(max(1, round(demand * _SHARE_TAKEN)), found.hop_ms, listeners, of_torch=found.of_torch),
        reports=reports,
    )
    most = max(2, round(demand * 0.8))
    part = seconds / 4
    autoscale = AutoscaleConfig(min_replicas=max(1, most // 3), max_replicas=most, downscale_delay_s=part)
    mixed = FleetPlan(
        "mixed",
        devices,
        seconds,
        rate_hz,
        _MIXED,
        CloudPlan(
            autoscale.min_replicas,
            found.hop_ms,
            listeners,
            autoscale,
            start_ms=min(found.start_ms, part * 250),
            of_torch=found.of_torch,
        ),
        (
            Event(part, others_per_s=0.3 * most / unit_s),
            Event(2 * part, others_per_s=0.0, uplink=0.25),
            Event(3 * part, uplink=1.0, feed_lost=True),
            Event(3 * part + min(2.0, part / 3), feed_lost=False),
        ),
        reports=reports,
    )
    undamped = replace(alike, name="all alike, undamped", patience_ms=0.0)
    bench.config = {
        "network": network.name,
        "whole_ms": unit_s * 1e3,
        "calibration": asdict(found),
        "replica_start_ms": mixed.cloud.start_ms,
        "devices": devices,
        "rate_hz": rate_hz,
        "load_reports_before_a_decision": reports,
        "patience_ms": alike.patience_ms,
        "alike": [asdict(each) for each in _ALIKE],
        "mixed": [asdict(each) for each in _MIXED],
        "replicas_alike": alike.cloud.replicas,
        "replicas_mixed": [autoscale.min_replicas, autoscale.max_replicas],
    }
    if reports is not None:
        _check(bench, network, found, reports)
    _simulate(bench, network, alike, [(0.0, "all start")])
    _simulate(bench, network, undamped, [(0.0, "all start")])
    moments = [(0.0, "all start"), (part, "others"), (2 * part, "slow uplinks"), (3 * part, "feed lost")]
    _simulate(bench, network, mixed, moments)
    _judge(bench)
    if bench.options.plot is not None:
        # The last three: what comes before them are trials of the simulation itself.
        plot_fleet(bench.options.plot, bench.config["runs"][-3:])
    return bench.finish()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the shares over time, as SVG or PNG")
    parser.add_argument("--devices", type=int, metavar="N")
    parser.add_argument("--seconds", type=float, metavar="S", help="virtual time of the mixed fleet")
    parser.add_argument("--rate-hz", type=float, default=0.3, help="requests per second of each device")
    parser.add_argument("--network", default="efficientnet-lite0", metavar="NAME")


def _check(bench: Bench, network: FleetNetwork, found: Calibration, reports: int) -> None:
    """A small fleet with every report and with the last few: they must not differ."""
    demand = _CHECK_DEVICES * _CHECK_RATE_HZ * sum(network.profile.unit_ms) / 1e3
    replicas = max(1, round(demand * _SHARE_TAKEN))
    fine = FleetPlan(
        f"{_CHECK_DEVICES} alike, every report",
        _CHECK_DEVICES,
        _CHECK_S,
        _CHECK_RATE_HZ,
        _ALIKE,
        CloudPlan(replicas, found.hop_ms, _LISTENERS, of_torch=found.of_torch),
    )
    coarse = replace(fine, name=f"{_CHECK_DEVICES} alike, last {reports} reports", reports=reports)
    for plan in (fine, coarse):
        _simulate(bench, network, plan, [(0.0, "all start")])
    every, last = bench.rows[-2:]
    for figure in ("offloaded", "deviation", "missed_share"):
        bench.target(
            f"{_CHECK_DEVICES} devices, last {reports} reports instead of all: {figure} differs by",
            abs(every[figure] - last[figure]),
            "share",
            _MOST_APART,
            "at_most",
        )


def _simulate(bench: Bench, network: FleetNetwork, plan: FleetPlan, moments: list[tuple[float, str]]) -> None:
    with bench.console.status(f"{plan.name}: {plan.devices:,} devices ...") as status:
        run = run_fleet(
            network, plan, bench.seed, lambda share: status.update(f"{plan.name}: {share:.0%} of the time")
        )
    if not run.outcomes:
        bench.unsound(f"{plan.name}: no request ended")
        return
    ends = [at_s for at_s, _ in moments[1:]] + [plan.seconds]
    for (at_s, what), end_s in zip(moments, ends, strict=True):
        bench.row(fleet=plan.name, since=what, **period_figures(run, at_s, end_s))
    bench.config.setdefault("runs", []).append(
        {
            "name": plan.name,
            "moments": [{"at_s": at_s, "what": what} for at_s, what in moments],
            "series": series(run),
            "errors": run.errors,
            "events": run.events,
        }
    )


def _judge(bench: Bench) -> None:
    """The swing has a target wherever the damping is on; so has the tail of the latency, per fleet."""
    longest_ms = {"all alike": _ALIKE[0].deadline_ms, "mixed": max(each.deadline_ms for each in _MIXED)}
    for row in bench.rows:
        if row["fleet"] not in longest_ms:
            continue
        where = f"{row['fleet']}, {row['since']}"
        name = f"{where}: deviation of the offloaded share beyond chance"
        bench.target(name, row["deviation"], "share", _MOST_DEVIATION, "at_most")
        bench.target(f"{where}: p99", row["p99_ms"], "ms", longest_ms[row["fleet"]], "at_most")
        bench.target(f"{where}: deadlines missed", row["missed_share"], "share", 0.01, "at_most")


if __name__ == "__main__":
    raise SystemExit(main())
