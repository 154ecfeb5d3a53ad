from __future__ import annotations

import math

import pytest

from bench.batching import in_time_share, requests, throughput_at_limit
from bench.batching_curves import RECORDED, spread_over_units
from bench.batching_replica import POLICIES, Ask, plan_same_cut, run_replica
from cloud_cluster.batching import plan
from cloud_cluster.curves import BatchCurves
from cloud_cluster.grouping import Pending
from cloud_cluster.joining import Places

UNITS = 10
STEEP = spread_over_units(RECORDED["V100"], [1.0 + unit for unit in range(UNITS)])
FLAT = BatchCurves.flat([1.0] * UNITS)
ANYWHERE = Places((True,) * (UNITS + 1))
NONE, SAME, ACROSS = POLICIES
CUTS = [0, 2, 4, 6]


@pytest.mark.parametrize("gpu", RECORDED)
def test_units_add_up_to_what_was_recorded_and_later_ones_gain_more_in_a_batch(gpu: str) -> None:
    curves = spread_over_units(RECORDED[gpu], [1.0 + unit for unit in range(UNITS)])
    for batch, ms in RECORDED[gpu].items():
        assert curves.ms(0, UNITS, batch) == pytest.approx(max(ms, RECORDED[gpu][1]))
    assert curves.ms(0, 1, 1) == pytest.approx(curves.ms(UNITS - 1, UNITS, 1))
    assert curves.ms(UNITS - 1, UNITS, 16) > 1.1 * curves.ms(0, 1, 16)


def test_a_lone_request_takes_its_units_and_the_hop() -> None:
    ran = run_replica(STEEP, ANYWHERE, ACROSS, [Ask(5.0, 1, 4, 1000.0)], hop_ms=0.7)
    assert ran.latency_ms == [pytest.approx(0.7 + STEEP.ms(4, UNITS, 1))]
    assert ran.batches == [1]


def test_what_cannot_be_in_time_counts_as_endless() -> None:
    asks = [Ask(0.0, 1, 0, 12.0), Ask(0.0, 2, 0, 12.0), Ask(0.0, 3, 0, 5.0)]
    ran = run_replica(FLAT, ANYWHERE, NONE, asks, hop_ms=0.0)
    assert ran.latency_ms == [pytest.approx(10.0), math.inf, math.inf]
    assert in_time_share(ran) == pytest.approx(1 / 3)


def test_a_server_of_whole_networks_joins_no_two_cuts() -> None:
    waiting = [Pending(number, cut) for number, cut in enumerate([0, 2, 0, 2, 4, 4, 0])]
    separate = plan_same_cut(waiting, STEEP, 0.0, 8, behind=0.0, margin=0.05)
    assert {frozenset(batch.ids) for batch in separate.batches} == {
        frozenset({0, 2, 6}),
        frozenset({1, 3}),
        frozenset({4, 5}),
    }
    assert len(plan(waiting, STEEP, 0.0, 8).batches) == 1
    two = [Ask(0.0, 1, 0, 1000.0), Ask(0.5, 2, 2, 1000.0)]
    assert run_replica(STEEP, ANYWHERE, SAME, two, hop_ms=0.0).batches == [1, 1]
    assert run_replica(STEEP, ANYWHERE, ACROSS, two, hop_ms=0.0).batches == [2, 2]


def test_requests_are_the_same_at_another_rate_only_closer_together() -> None:
    slow = requests(200, 10.0, 4.0, STEEP, CUTS, seed=3)
    fast = requests(200, 40.0, 4.0, STEEP, CUTS, seed=3)
    assert [(ask.device, ask.cut, ask.budget_ms) for ask in slow] == [
        (ask.device, ask.cut, ask.budget_ms) for ask in fast
    ]
    assert [ask.at_ms for ask in slow] == pytest.approx([4 * ask.at_ms for ask in fast])
    assert 200 / slow[-1].at_ms * 1e3 == pytest.approx(10.0, rel=0.3)
    assert 30 < len({ask.at_ms for ask in slow}) < 80


def test_where_batches_save_nothing_there_are_none() -> None:
    asks = requests(200, 90.0, 1.0, FLAT, CUTS, seed=1)
    alone, across = (run_replica(FLAT, ANYWHERE, policy, asks, 0.5) for policy in (NONE, ACROSS))
    assert across.latency_ms == alone.latency_ms
    assert set(across.batches) == {1}


def test_on_steep_curves_more_is_carried_and_most_of_all_across_cuts() -> None:
    none, same, across = (
        throughput_at_limit(STEEP, ANYWHERE, policy, CUTS, 1.0, 300, 1, 0.5) for policy in POLICIES
    )
    assert 1.5 * none < same < across
