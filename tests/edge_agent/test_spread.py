from __future__ import annotations

import pytest

from edge_agent.spread import Spread


def test_a_steady_device_needs_no_more_than_is_predicted() -> None:
    spread = Spread()
    for measured_ms in (9.0, 10.0, 11.0, 8.0) * 10:
        spread.add(measured_ms, 12.0)
    assert spread.factor == 1.0


def test_nine_in_ten_are_covered_and_one_outlier_in_many_is_not() -> None:
    spread = Spread()
    for _ in range(31):
        spread.add(10.0, 10.0)
    spread.add(80.0, 10.0)
    assert spread.factor == 1.0
    for measured_ms in (10.0, 10.0, 10.0, 10.0, 20.0) * 7:
        spread.add(measured_ms, 10.0)
    assert spread.factor == pytest.approx(2.0)


def test_few_or_short_computations_say_nothing_and_no_factor_is_absurd() -> None:
    spread = Spread()
    for _ in range(7):
        spread.add(50.0, 10.0)
    assert spread.factor == 1.0
    for _ in range(20):
        spread.add(1.0, 0.1)
    assert spread.factor == 1.0
    spread.add(1000.0, 10.0)
    assert spread.factor == 4.0


def test_an_unsteady_time_is_forgotten() -> None:
    spread = Spread()
    for _ in range(40):
        spread.add(30.0, 10.0)
    assert spread.factor == pytest.approx(3.0)
    for _ in range(32):
        spread.add(10.0, 10.0)
    assert spread.factor == 1.0
