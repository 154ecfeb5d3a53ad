"""What the predictor's bench reckons from its measurements, on networks small enough to work out by hand."""

from __future__ import annotations

import pytest

from bench.predict import DEVICE_SLOWDOWN, RTT_MS, UPLINKS_MBPS, Measured, plain_fit, regret
from shared.plan.features import UnitFeatures
from shared.plan.predict import Sample


def network(unit_ms: list[float], cut_bytes: list[int]) -> Measured:
    features = UnitFeatures(0, "conv2d", "conv2d", "convolution", 1e6, 4, 4, 4, 1, (3, 3))
    return Measured([Sample(features, ms) for ms in unit_ms], cut_bytes)


def test_a_perfect_prediction_loses_nothing() -> None:
    measured = network([1.0, 2.0, 3.0], [100_000, 10_000, 1_000, 0])
    assert regret(measured, [1.0, 2.0, 3.0]) == 0.0


def test_a_wrong_choice_costs_what_the_chosen_cut_takes_longer() -> None:
    """All on the device takes 5 * 1 ms; believed to take 5 s, the input is shipped over every link."""
    measured = network([1.0], [1_000, 0])
    alone_ms = 1.0 * DEVICE_SLOWDOWN
    lost = [(8 / mbps + RTT_MS + 1.0) / alone_ms - 1 for mbps in UPLINKS_MBPS]
    assert regret(measured, [1_000.0]) == pytest.approx(sum(lost) / len(lost))


def test_of_two_passes_the_quieter_counts() -> None:
    slow, fast = network([2.0, 3.0], [1, 1, 0]), network([2.5, 1.5], [1, 1, 0])
    for chosen in (slow.quieter(fast), fast.quieter(slow)):
        assert chosen.samples == fast.samples
        assert chosen.noise == pytest.approx(0.25)


def test_the_plain_fit_may_go_negative_where_ours_may_not() -> None:
    def unit(flops: float) -> UnitFeatures:
        return UnitFeatures(0, "conv2d", "conv2d", "convolution", flops, 0, 0, 0, 1, ())

    samples = [Sample(unit(flops), ms) for flops, ms in ((1.0, 0.5), (2.0, 2.0), (3.0, 5.0))]
    assert plain_fit(samples).ms(unit(0.5)) == pytest.approx(-0.875)
