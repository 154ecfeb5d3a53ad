"""Objectives and energy, against loops over the rows that say it in words."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import Form
from shared.graph.ir import Graph
from shared.plan.energy import Power, energy_mj
from shared.plan.latency import Conditions, latency_ms, stage_ms
from shared.plan.objective import (
    BestFidelity,
    Energy,
    Latency,
    Objective,
    Throughput,
    Weighted,
    bottleneck_ms,
    in_flight,
    with_backlog,
)
from shared.plan.profile import Profile
from shared.plan.radio import RADIOS, LinkType
from shared.plan.rows import build_rows
from shared.plan.solve import choose
from shared.plan.stages import Stage
from tests.shared.plan.builders import CONDITIONS, chain, networks, profile_of

Network = tuple[Graph, Profile, tuple[float, ...]]
POWER = Power(busy_w=8.0, idle_w=2.0, link=LinkType.LTE)
GRAPH = chain([150_528, 400_000, 100_000, 20_000, 1000])
ROWS = build_rows(GRAPH, profile_of(GRAPH, [20.0, 30.0, 25.0, 15.0]), (2.0, 3.0, 2.5, 1.5))
AT = Conditions(8e6, 20.0, downlink_bps=20e6)


@given(networks(), CONDITIONS, st.sampled_from(list(LinkType)))
@settings(max_examples=60, deadline=None)
def test_energy_is_busy_and_idle_time_and_the_radio(network: Network, at: Conditions, link: LinkType) -> None:
    rows = build_rows(*network)
    energy = energy_mj(rows, at, replace(POWER, link=link))
    radio = RADIOS[link]
    for row in range(len(rows)):
        stages = stage_ms(rows, row, at)
        busy = sum(
            stages[stage] for stage in (Stage.DEVICE, Stage.ENCODE, Stage.RESULT_DECODE, Stage.OVERHEAD)
        )
        expected = 8.0 * busy + 2.0 * (sum(stages.values()) - busy)
        up = radio.uplink_mw_per_mbps * at.uplink_bps / 1e6 + radio.base_mw
        down = radio.downlink_mw_per_mbps * at.downlink_bps / 1e6 + radio.base_mw
        expected += stages[Stage.UPLINK] * up / 1e3 + stages[Stage.DOWNLINK] * down / 1e3
        assert energy[row] == pytest.approx(expected, rel=1e-9)


def test_out_of_reach_no_remote_row_has_an_energy() -> None:
    energy = energy_mj(ROWS, replace(AT, reachable=False), POWER)
    assert np.isfinite(energy).nonzero()[0].tolist() == [ROWS.local]


@given(networks(), CONDITIONS, st.floats(0.01, 2000))
@settings(max_examples=60, deadline=None)
def test_energy_within_a_deadline_is_the_least_energy_that_makes_it(
    network: Network, at: Conditions, deadline_ms: float
) -> None:
    rows = build_rows(*network)
    scores = Energy(POWER, deadline_ms).score(rows, at)
    row = choose(scores).row
    latency, energy = latency_ms(rows, at), energy_mj(rows, at, POWER)
    in_time = [other for other in range(len(rows)) if latency[other] <= deadline_ms]
    if in_time:
        assert not scores.unmet
        assert latency[row] <= deadline_ms
        assert energy[row] == pytest.approx(min(energy[other] for other in in_time), rel=1e-9)
    else:
        assert "deadline_ms" in scores.unmet
        assert f"{latency.min():.4g} ms" in scores.unmet
        assert latency[row] == pytest.approx(latency.min(), rel=1e-9)


@given(networks(), CONDITIONS, st.floats(0.01, 5000))
@settings(max_examples=60, deadline=None)
def test_latency_within_an_energy_is_the_fastest_that_can_be_afforded(
    network: Network, at: Conditions, budget_mj: float
) -> None:
    rows = build_rows(*network)
    scores = Latency(budget_mj, POWER).score(rows, at)
    row = choose(scores).row
    latency, energy = latency_ms(rows, at), energy_mj(rows, at, POWER)
    afforded = [other for other in range(len(rows)) if energy[other] <= budget_mj]
    if afforded:
        assert not scores.unmet
        assert energy[row] <= budget_mj
        assert latency[row] == pytest.approx(min(latency[other] for other in afforded), rel=1e-9)
    else:
        assert f"energy_mj {budget_mj:.4g} cannot be kept" in scores.unmet
        assert energy[row] == pytest.approx(energy.min(), rel=1e-9)


@given(networks(), CONDITIONS, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_bottleneck_is_the_busiest_of_the_four(network: Network, at: Conditions, replicas: int) -> None:
    rows = build_rows(*network)
    period = bottleneck_ms(rows, replace(at, replicas=replicas))
    for row in range(len(rows)):
        stages = stage_ms(rows, row, at)
        expected = max(
            stages[Stage.DEVICE] + stages[Stage.ENCODE] + stages[Stage.RESULT_DECODE],
            stages[Stage.UPLINK],
            (stages[Stage.DECODE] + stages[Stage.CLOUD] + stages[Stage.RESULT_ENCODE]) / replicas,
            stages[Stage.DOWNLINK],
        )
        assert period[row] == pytest.approx(expected, rel=1e-9)


def test_a_stream_without_a_rate_runs_as_fast_as_it_can() -> None:
    row = choose(Throughput().score(ROWS, AT)).row
    assert bottleneck_ms(ROWS, AT)[row] == bottleneck_ms(ROWS, AT).min()
    assert bottleneck_ms(ROWS, AT)[row] < bottleneck_ms(ROWS, AT)[choose(Latency().score(ROWS, AT)).row]


def test_a_stream_with_a_rate_gets_the_fastest_answers_that_keep_up() -> None:
    period = bottleneck_ms(ROWS, AT)
    latency = latency_ms(ROWS, AT)
    rate_hz = 1000.0 / float(np.sort(period)[len(period) // 3])
    scores = Throughput(rate_hz).score(ROWS, AT)
    row = choose(scores).row
    keeps_up = [other for other in range(len(ROWS)) if period[other] <= 950.0 / rate_hz]
    assert not scores.unmet
    assert row == min(keeps_up, key=lambda other: float(latency[other]))


def test_a_rate_that_nothing_keeps_up_with_names_the_one_that_is_possible() -> None:
    scores = Throughput(1e6).score(ROWS, AT)
    possible = float(scores.unmet.rpartition(" ")[2])
    assert "rate_hz 1e+06 cannot be kept up" in scores.unmet
    assert not Throughput(possible * 0.99).score(ROWS, AT).unmet
    assert Throughput(possible * 1.01).score(ROWS, AT).unmet


@pytest.mark.parametrize(("latency", "period", "number"), [(50.0, 10.0, 5), (51.0, 10.0, 6), (3.0, 10.0, 1)])
def test_a_stream_needs_as_many_in_flight_as_periods_fit_a_latency(
    latency: float, period: float, number: int
) -> None:
    assert in_flight(latency, period) == number


@given(networks(), CONDITIONS, st.tuples(*[st.floats(0.1, 10)] * 3))
@settings(max_examples=40, deadline=None)
def test_weights_are_prices(network: Network, at: Conditions, prices: tuple[float, float, float]) -> None:
    rows = build_rows(*network)
    cost = Weighted(*prices, POWER).score(rows, at).cost
    kilobytes = rows.payload_bytes * at.batch / 1000
    expected = (
        prices[0] * latency_ms(rows, at) + prices[1] * energy_mj(rows, at, POWER) + prices[2] * kilobytes
    )
    assert cost == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "objective",
    [
        Latency(),
        Latency(1e9, POWER),
        Energy(POWER),
        Energy(POWER, 1e9),
        Throughput(),
        Throughput(0.1),
        Weighted(0.0, 1.0, 1.0, POWER),
        Weighted(0.0, 0.0, 1.0),
    ],
)
def test_out_of_reach_every_objective_stays_on_the_device(objective: Objective) -> None:
    scores = objective.score(ROWS, replace(AT, reachable=False))
    assert choose(scores).row == ROWS.local
    assert math.isfinite(scores.latency_ms[ROWS.local])


def test_the_cheapest_in_energy_is_not_the_fastest_here() -> None:
    fast = choose(Latency().score(ROWS, AT)).row
    frugal = choose(Energy(POWER).score(ROWS, AT)).row
    energy = energy_mj(ROWS, AT, POWER)
    assert frugal != fast
    assert energy[frugal] < energy[fast]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Latency(5.0),
        lambda: Weighted(per_mj=1.0),
        lambda: Weighted(0.0, 0.0, 0.0),
        lambda: Weighted(-1.0),
        lambda: Power(1.0, 2.0),
    ],
)
def test_what_makes_no_sense_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"power|price|lie between"):
        make()  # type: ignore[operator]


@given(networks(), CONDITIONS, st.floats(0.0, 1e4))
@settings(max_examples=40, deadline=None)
def test_a_backlog_charges_every_row_for_what_it_holds_the_device(
    network: Network, at: Conditions, backlog_ms: float
) -> None:
    rows = build_rows(*network)
    plain = Latency().score(rows, at)
    charged = with_backlog(plain, rows, at, backlog_ms)
    assert charged.latency_ms is plain.latency_ms
    extra = charged.cost - plain.cost
    reached = np.isfinite(plain.cost)
    assert extra[rows.local] == pytest.approx(backlog_ms)  # once more what waits already
    stages = [stage_ms(rows, row, at) for row in range(len(rows))]
    held = [each[Stage.DEVICE] + each[Stage.ENCODE] + each[Stage.RESULT_DECODE] for each in stages]
    for row in np.flatnonzero(reached):
        assert extra[row] == pytest.approx(backlog_ms * held[row] / held[rows.local], rel=1e-6, abs=1e-6)


@given(networks(), CONDITIONS, st.floats(0.01, 2000), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_fidelity_within_a_deadline_is_the_best_answer_that_makes_it_and_the_fastest_of_those(
    network: Network, at: Conditions, deadline_ms: float, seed: int
) -> None:
    rows = build_rows(*network)
    random = np.random.default_rng(seed)
    rows = replace(rows, infidelity=rows.infidelity * random.choice([0.0, 0.01, 0.2, 0.9], len(rows)))
    scores = BestFidelity(deadline_ms).score(rows, at)
    latency = latency_ms(rows, at)
    row = choose(scores).row
    in_time = np.flatnonzero(latency <= deadline_ms)
    if not len(in_time):
        assert scores.unmet.startswith("deadline_ms")
        assert latency[row] == pytest.approx(latency.min(), rel=1e-9)
        return
    assert not scores.unmet
    assert latency[row] <= deadline_ms
    best = rows.infidelity[in_time].min()
    assert rows.infidelity[row] == best
    equals = in_time[rows.infidelity[in_time] == best]
    assert latency[row] == pytest.approx(latency[equals].min(), rel=1e-5)


def test_without_a_gate_nothing_is_known_of_lossy_rows_and_lossless_ones_are_the_answer_itself() -> None:
    exact = np.array([ROWS.codec_of(row).form is Form.EXACT for row in range(len(ROWS))])
    assert (ROWS.infidelity[exact] == 0).all()
    floats = ROWS.floats & ~exact
    assert floats.any()
    assert (ROWS.infidelity[floats] == 1).all()
