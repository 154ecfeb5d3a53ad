"""What the benches of plans choose and reckon, on networks small enough to work out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given

from bench import candidates
from bench.candidates import cloud_only, codecs_in, label, noise, oracle_regret, papers_choice, regret, to_try
from shared.codec import Codec
from shared.plan.latency import Conditions, latency_ms
from shared.plan.rows import FAITHFUL, Rows, build_rows
from shared.tensor import DType
from tests.shared.plan.builders import CONDITIONS, chain, profile_of


def rows_of(sizes: list[int], unit_ms: list[float], codecs: tuple[Codec, ...] = FAITHFUL) -> Rows:
    graph = chain(sizes, DType.FLOAT32)
    return build_rows(graph, profile_of(graph, unit_ms), [ms / 10 for ms in unit_ms], codecs)


ROWS = rows_of([50_000, 10_000, 100_000, 10], [10.0, 20.0, 90.0])


def test_labels_are_short_and_codecs_can_be_read_from_them() -> None:
    assert label(ROWS, ROWS.local) == "device"
    assert label(ROWS, cloud_only(ROWS, Conditions(1e3, 0.0))) == "cloud uint8+zstd"
    assert codecs_in("2x uint8+zstd, 1x float16") == ["uint8+zstd", "float16"]
    assert codecs_in("float32") == ["float32"]


def test_cloud_only_takes_the_codec_that_suits_the_link() -> None:
    assert cloud_only(ROWS, Conditions(1e3, 0.0)) != cloud_only(ROWS, Conditions(1e12, 0.0))
    for bps in (1e3, 1e12):
        row = cloud_only(ROWS, Conditions(bps, 0.0))
        assert ROWS.cut_of(row).edge_units == ()
        assert ROWS.remote[row]


def test_the_papers_policy_sees_neither_codecs_nor_round_trip() -> None:
    """40 kB of float32 after the first unit: 32 ms at 10 Mbps, against 99 ms more on the device."""
    slow_round_trip = Conditions(1e7, 500.0)
    row = papers_choice(ROWS, slow_round_trip)
    assert label(ROWS, row) == "1/3 float32"
    assert latency_ms(ROWS, slow_round_trip)[row] > latency_ms(ROWS, slow_round_trip)[ROWS.local]
    assert papers_choice(ROWS, Conditions(1e4, 500.0)) == ROWS.local


def test_the_papers_policy_stretches_the_cloud_by_one_factor() -> None:
    """Twelve ms of cloud time of which 11 are left; a queue of 120 ms makes each of them 11 times longer."""
    row = papers_choice(ROWS, Conditions(1e7, 0.0, wait_ms=120.0))
    assert row == ROWS.local


@given(CONDITIONS)
def test_what_is_tried_holds_the_best_in_prediction_and_both_extremes(at: Conditions) -> None:
    tried = to_try(ROWS, at)
    assert latency_ms(ROWS, at)[tried].min() == latency_ms(ROWS, at).min()
    assert {ROWS.local, cloud_only(ROWS, at)} <= set(tried)
    assert len(tried) < len(ROWS)


def test_regret_is_against_the_best_median() -> None:
    measured = {3: [10.0, 11.0, 30.0], 5: [20.0, 5.0, 20.0]}
    assert regret([12.1, 12.1, 99.0], measured) == pytest.approx(0.1)
    assert candidates._best_row(measured) == 3


def test_an_oracle_that_is_misled_by_noise_has_a_regret_too() -> None:
    """Row 0 looks best in even rounds and is worst in odd ones."""
    measured = {0: [10.0, 20.0, 10.0, 20.0], 1: [15.0, 15.0, 15.0, 15.0]}
    assert oracle_regret(measured) == pytest.approx((20 / 15 - 1 + 15 / 10 - 1) / 2)
    assert oracle_regret({0: [10.0, 20.0, 10.0]}) is None


def test_noise_is_between_rounds_of_one_candidate() -> None:
    assert noise({0: [10.0, 20.0, 10.0, 20.0], 1: [15.0] * 4}) == pytest.approx((0.5 + 0.0) / 2)
    assert noise({0: [1.0]}) is None
