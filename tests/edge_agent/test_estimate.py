"""The link's estimates: quick to believe a jump, slow to believe noise."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.estimate import MIN_SPAN_BYTES, LinkEstimator, Tracker

NOISE = st.floats(-0.2, 0.2)


def link() -> LinkEstimator:
    return LinkEstimator(10e6, 20.0)


def feed(estimator: LinkEstimator, bps: float, now_ms: float = 0.0, payload_bytes: int = 100_000) -> None:
    assert estimator.on_span(payload_bytes, payload_bytes * 8000.0 / bps, now_ms)


@given(st.floats(1e5, 1e9), st.lists(NOISE, min_size=20, max_size=200))
@settings(deadline=None)
def test_noise_of_a_fifth_moves_the_estimate_by_less(rate: float, noise: list[float]) -> None:
    estimator = link()
    for _ in range(5):
        feed(estimator, rate)
    for deviation in noise:
        feed(estimator, rate * (1 + deviation))
        assert abs(math.log(estimator.uplink_bps / rate)) <= -math.log(0.8) + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_random_noise_moves_the_estimate_little(seed: int) -> None:
    draw = random.Random(seed)
    estimator = link()
    errors = []
    for count in range(300):
        feed(estimator, 20e6 * (1 + draw.uniform(-0.2, 0.2)))
        if count >= 20:
            errors.append(abs(estimator.uplink_bps / 20e6 - 1))
    assert max(errors) < 0.16
    assert sum(errors) / len(errors) < 0.05


@given(
    st.floats(1e5, 1e8),
    st.floats(2.5, 200.0),
    st.booleans(),
    st.lists(NOISE, min_size=23, max_size=23),
)
@settings(max_examples=200, deadline=None)
def test_a_jump_in_either_direction_is_believed_within_three_samples(
    rate: float, factor: float, up: bool, noise: list[float]
) -> None:
    estimator = link()
    for deviation in noise[:20]:
        feed(estimator, rate * (1 + deviation))
    after = rate * factor if up else rate / factor
    for deviation in noise[20:]:
        feed(estimator, after * (1 + deviation))
    assert 0.79 <= estimator.uplink_bps / after <= 1.21


@pytest.mark.parametrize("factor", [1.6, 1 / 1.6])
def test_a_moderate_step_is_believed_with_the_third_sample(factor: float) -> None:
    estimator = link()
    for _ in range(20):
        feed(estimator, 10e6)
    for _ in range(3):
        feed(estimator, 10e6 * factor)
    assert estimator.uplink_bps == pytest.approx(10e6 * factor, rel=0.01)


@given(st.floats(10, 1000), st.booleans())
def test_a_single_outlier_is_not_believed(factor: float, up: bool) -> None:
    estimator = link()
    for _ in range(10):
        feed(estimator, 10e6)
    feed(estimator, 10e6 * (factor if up else 1 / factor))
    assert estimator.uplink_bps == pytest.approx(10e6, rel=0.05)
    feed(estimator, 10e6)
    feed(estimator, 10e6)
    assert estimator.uplink_bps == pytest.approx(10e6, rel=0.05)


def test_short_payloads_and_empty_spans_say_nothing() -> None:
    estimator = link()
    assert not estimator.on_span(MIN_SPAN_BYTES - 1, 1.0, 0.0)
    assert not estimator.on_span(100_000, 0.0, 0.0)
    assert not estimator.on_span(100_000, math.nan, 0.0)
    assert estimator.uplink_bps == pytest.approx(10e6)
    assert not estimator.estimate(5.0).measured


def test_the_first_sample_replaces_the_assumption() -> None:
    estimator = link()
    feed(estimator, 3e6, now_ms=10.0)
    now = estimator.estimate(14.0)
    assert now.uplink_bps == pytest.approx(3e6)
    assert now.measured
    assert now.uplink_age_ms == 4.0


def test_spread_shrinks_with_steady_samples_and_grows_with_age() -> None:
    estimator = link()
    assert estimator.estimate(0.0).uplink_spread == math.inf
    for now in range(20):
        feed(estimator, 3e6, now_ms=float(now))
    fresh, old = estimator.estimate(20.0), estimator.estimate(60_000.0)
    assert fresh.uplink_spread < 0.2
    assert old.uplink_spread > 1.0
    assert old.uplink_bps == fresh.uplink_bps


def test_a_payload_that_does_not_get_through_bounds_the_uplink() -> None:
    estimator = link()
    for _ in range(20):
        feed(estimator, 100e6)
    assert not estimator.on_stalled(100_000, 5.0)  # 160 Mbps at most: known already
    assert estimator.on_stalled(100_000, 800.0)
    assert estimator.uplink_bps == pytest.approx(1e6)
    assert estimator.estimate(0.0).bounded
    assert estimator.on_stalled(100_000, 1600.0)
    assert estimator.uplink_bps == pytest.approx(0.5e6)
    feed(estimator, 90e6)
    assert estimator.uplink_bps == pytest.approx(90e6)
    assert not estimator.estimate(0.0).bounded


def test_a_small_payload_that_is_late_bounds_nothing() -> None:
    estimator = link()
    assert not estimator.on_stalled(500, 10_000.0)


def test_after_a_reconnect_the_old_rate_is_a_prior_only() -> None:
    estimator = link()
    for _ in range(20):
        feed(estimator, 100e6)
        estimator.on_rtt(5.0, 0.0)
    estimator.on_reconnected()
    assert estimator.uplink_bps == pytest.approx(100e6)
    assert estimator.estimate(0.0).uplink_spread >= 1.0
    feed(estimator, 1e6)
    estimator.on_rtt(50.0, 0.0)
    assert estimator.uplink_bps == pytest.approx(1e6)
    assert estimator.estimate(0.0).rtt_ms == pytest.approx(50.0)


def test_the_round_trip_ignores_a_spike_and_follows_a_step() -> None:
    estimator = link()
    for _ in range(10):
        estimator.on_rtt(10.0, 0.0)
    estimator.on_rtt(400.0, 1.0)
    assert estimator.estimate(1.0).rtt_ms == pytest.approx(10.0, rel=0.05)
    for _ in range(3):
        estimator.on_rtt(80.0, 2.0)
    assert estimator.estimate(3.0).rtt_ms == pytest.approx(80.0, rel=0.01)
    assert estimator.estimate(3.0).rtt_age_ms == 1.0
    for _ in range(3):
        estimator.on_rtt(0.0, 4.0)
    assert estimator.estimate(4.0).rtt_ms < 0.01


def test_the_downlink_is_taken_from_the_uplink_until_a_result_shows_it() -> None:
    estimator = link()
    feed(estimator, 2e6)
    assert estimator.estimate(0.0).downlink_bps == pytest.approx(2e6)
    assert not estimator.on_download(100, 1.0)
    assert not estimator.on_download(100_000, -1.0)
    assert estimator.on_download(100_000, 16.0)
    assert estimator.estimate(0.0).downlink_bps == pytest.approx(50e6)


@pytest.mark.parametrize("sample", [0.0, -1.0, math.inf])
def test_a_tracker_refuses_what_no_quantity_can_be(sample: float) -> None:
    tracker = Tracker(1.0, 0.1, 10.0)
    with pytest.raises(ValueError, match="positive"):
        tracker.add(sample)


def test_a_tracker_clips_to_its_range() -> None:
    tracker = Tracker(1.0, 0.1, 10.0)
    tracker.add(5000.0)
    assert tracker.value == pytest.approx(10.0)


def test_the_downlink_moves_as_the_uplink_until_it_is_measured_again() -> None:
    link = LinkEstimator(10e6, 20.0)
    for _ in range(4):
        link.on_span(100_000, 100_000 * 8000 / 20e6, 0.0)
        link.on_download(50_000, 50_000 * 8000 / 40e6)
    assert link.estimate(0.0).downlink_bps == pytest.approx(40e6)
    for _ in range(3):
        link.on_span(100_000, 100_000 * 8000 / 5e6, 0.0)
    assert link.estimate(0.0).downlink_bps == pytest.approx(10e6, rel=0.01)
    for _ in range(3):
        link.on_download(50_000, 50_000 * 8000 / 60e6)
    assert link.estimate(0.0).downlink_bps == pytest.approx(60e6, rel=0.01)
