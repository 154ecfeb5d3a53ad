from __future__ import annotations

from dataclasses import replace

import pytest

from bench.roofline import Roofline
from shared.plan.features import UnitFeatures

UNIT = UnitFeatures(0, "conv2d", "conv2d", "convolution", 0.0, 0, 0, 0, 1, ())
COMPUTE = replace(UNIT, flops=4e9, bytes_in=10**6, calls=2)  # 400 ms at 10 GFLOPS
MEMORY = replace(UNIT, flops=1e6, bytes_in=10**7, bytes_out=10**7, weight_bytes=8 * 10**7)  # 100 ms at 1 GB/s
MACHINE = Roofline("small", 10.0, 1.0, 0.5)


def test_a_unit_takes_the_longer_of_arithmetic_and_memory_and_its_calls() -> None:
    assert MACHINE.unit_ms(COMPUTE) == pytest.approx(400.0 + 1.0)
    assert MACHINE.unit_ms(MEMORY) == pytest.approx(100.0 + 0.5)
    assert replace(MACHINE, efficiency=0.25).unit_ms(MEMORY) == pytest.approx(400.5)


def test_the_efficiency_is_what_makes_a_network_take_its_measured_time() -> None:
    fitted = MACHINE.calibrated([COMPUTE, MEMORY], 2001.5)
    assert fitted.efficiency == pytest.approx(0.25)
    assert sum(map(fitted.unit_ms, (COMPUTE, MEMORY))) == pytest.approx(2001.5)
    assert fitted.as_dict()["GFLOPS"] == pytest.approx(2.5)
    assert fitted.as_dict()["GB/s"] == pytest.approx(0.25)


def test_no_machine_is_faster_than_its_peaks() -> None:
    with pytest.raises(ValueError, match="small takes 500 ms at its peaks, not 499 ms"):
        MACHINE.calibrated([COMPUTE, MEMORY], 500.5)
