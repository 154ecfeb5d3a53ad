"""The bench of a changing uplink: what the clairvoyant chooses, and what is made of the runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from bench.contract import Bench
from bench.shaping import Trace
from bench.trace import Run, clairvoyant, main, report
from bench.uplinks import Clock
from shared.plan.latency import Conditions, latency_ms
from shared.plan.rows import Rows, build_rows
from tests.shared.plan.builders import chain, profile_of


@dataclass
class Decided:
    rows: Rows
    conditions: Conditions


@pytest.fixture(scope="module")
def decided() -> Decided:
    """Slow on the device, small in the middle, fast in the cloud."""
    graph = chain([150_000, 200_000, 4_000, 10])
    profile = profile_of(graph, [30.0, 30.0, 60.0])
    rows = build_rows(graph, profile, cloud_unit_ms=[3.0, 3.0, 6.0])
    return Decided(rows, Conditions(uplink_bps=20e6, rtt_ms=10.0))


@pytest.mark.parametrize("mbps", [0.2, 2.0, 20.0, 200.0])
def test_on_a_steady_link_the_clairvoyant_is_the_optimum(decided: Decided, mbps: float) -> None:
    steady = Trace(((1.0, mbps * 1e6),))
    decided.conditions = Conditions(uplink_bps=mbps * 1e6, rtt_ms=10.0)
    expected = int(np.argmin(latency_ms(decided.rows, decided.conditions)))
    assert clairvoyant(decided, Clock(steady, 60.0), 3.21) == expected


def test_the_clairvoyant_sends_nothing_into_a_tunnel_that_it_alone_sees(decided: Decided) -> None:
    tunnel = Trace(((10.0, 50e6), (5.0, 0.0)))
    clock = Clock(tunnel, 60.0)
    decided.conditions = Conditions(uplink_bps=50e6, rtt_ms=10.0)
    assert clairvoyant(decided, clock, 5.0) != decided.rows.local
    assert clairvoyant(decided, clock, 9.999) == decided.rows.local


def run(policy: str, ms: list[float], places: list[str] | None = None, errors: int = 0) -> Run:
    at_s = [0.5 * number for number in range(len(ms))]
    return Run(policy, at_s, ms, places or ["cut"] * len(ms), 0, ["DeadlineError"] * errors)


def test_errors_are_misses_at_every_limit_and_switches_are_changes() -> None:
    one = run("suture", [90.0, 150.0, 600.0], ["a", "b", "b"], errors=1)
    assert [one.missed(limit) for limit in (100.0, 200.0, 500.0)] == [0.75, 0.5, 0.5]
    assert one.switches == 1


def test_targets_hold_suture_against_the_clairvoyant_and_the_best_baseline() -> None:
    bench = Bench("trace", [])
    report(
        bench,
        [
            run("suture", [100.0, 120.0]),
            run("suture, no deadline", [1000.0, 1000.0]),
            run("device only", [150.0, 150.0]),
            run("cloud only", [50.0, 900.0]),
            run("clairvoyant", [100.0, 100.0]),
        ],
    )
    found = {target.name: target for target in bench.targets}
    assert found["mean over the clairvoyant's"].value == pytest.approx(10.0)
    assert found["p99 over the least of the baselines'"].value == pytest.approx(119.8 / 150.0)
    assert found["frames over 100 ms, beside the least of the baselines'"].value == pytest.approx(0.0)
    assert found["frames over 500 ms, beside the least of the baselines'"].value == pytest.approx(0.0)
    assert not bench.problems


def test_a_policy_without_an_answer_makes_the_run_unsound() -> None:
    bench = Bench("trace", [])
    report(bench, [run("suture", [], errors=2)])
    assert bench.problems == ["suture: no frame was answered"]


def test_a_trace_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trace", "/nowhere/at.all"]) == 2
    assert "/nowhere/at.all" in capsys.readouterr().out
