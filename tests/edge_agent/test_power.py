"""Meters: which is chosen and why, and what each says a request cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.power import Activity, MeasuringMeter, ModelMeter, choose_meter
from shared.errors import StartupError
from shared.plan.energy import Power
from shared.plan.radio import LinkType

WIFI = Power(busy_w=10.0, idle_w=2.0, link=LinkType.WIFI)
LTE = Power(busy_w=10.0, idle_w=2.0, link=LinkType.LTE)


def jetson(root: Path) -> None:
    base = root / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    base.mkdir(parents=True)
    (base / "rail_name_0").write_text("POM_5V_IN\n")
    (base / "in_power0_input").write_text("2500\n")


def package(root: Path, microjoules: int) -> None:
    base = root / "sys/class/powercap/intel-rapl:0"
    base.mkdir(parents=True, exist_ok=True)
    (base / "name").write_text("package-0\n")
    (base / "energy_uj").write_text(f"{microjoules}\n")
    (base / "max_energy_range_uj").write_text("262143328850\n")


class FakeCounter:
    detail = "fake"

    def __init__(self, *totals_mj: float | None) -> None:
        self.totals_mj = list(totals_mj)
        self.closed = False

    def total_mj(self) -> float | None:
        return self.totals_mj.pop(0)

    def close(self) -> None:
        self.closed = True


def test_the_model_charges_busy_idle_and_radio() -> None:
    meter = ModelMeter(WIFI)
    activity = Activity(busy_ms=50, idle_ms=120, uplink_bytes=100_000, uplink_mbps=8.0)
    # 10 W * 50 ms + 2 W * 120 ms + (283.17 * 8 + 132.86) mW * 100 ms
    assert meter.energy_mj(meter.start(), activity) == pytest.approx(500 + 240 + 239.822)
    assert meter.detail == "10 W busy, 2 W idle, wifi radio"


def test_on_the_model_meter_a_split_can_save_energy_where_it_costs_time() -> None:
    """120 ms all on the device against 20 ms, a 20 ms upload of 20 kB over LTE, and 100 ms of waiting."""
    meter = ModelMeter(Power(10.0, 2.0, LinkType.LTE_MODERN))
    alone = meter.energy_mj(None, Activity(busy_ms=120))
    split = meter.energy_mj(None, Activity(busy_ms=20, idle_ms=120, uplink_bytes=20_000, uplink_mbps=8.0))
    assert alone == pytest.approx(1200)
    assert split == pytest.approx(200 + 240 + 76.7 * 8 * 0.02)


def test_a_measured_window_is_the_difference_of_two_readings() -> None:
    meter = MeasuringMeter("rapl", FakeCounter(100.0, 140.0, 175.0, 190.0))
    first = meter.start()
    second = meter.start()
    assert meter.energy_mj(first, Activity(busy_ms=1)) == 75.0
    assert meter.energy_mj(second, Activity(busy_ms=1)) == 50.0


def test_a_window_without_a_reading_at_either_end_is_unknown() -> None:
    assert MeasuringMeter("rapl", FakeCounter(5.0)).energy_mj(None, Activity(busy_ms=1)) is None
    assert MeasuringMeter("rapl", FakeCounter(None)).energy_mj(5.0, Activity(busy_ms=1)) is None


def test_a_held_power_that_was_corrected_down_is_never_negative_energy() -> None:
    assert MeasuringMeter("ina3221", FakeCounter(4.9)).energy_mj(5.0, Activity(busy_ms=1)) == 0.0


def test_closing_a_meter_closes_its_counter() -> None:
    counter = FakeCounter()
    MeasuringMeter("rapl", counter).close()
    assert counter.closed


def test_a_jetson_is_measured_by_its_own_monitor_even_where_there_is_rapl(tmp_path: Path) -> None:
    jetson(tmp_path)
    package(tmp_path, 0)
    choice = choose_meter("auto", WIFI, root=tmp_path)
    try:
        assert choice.meter.name == "ina3221"
        assert choice.why == "ina3221 (rails POM_5V_IN)"
    finally:
        choice.meter.close()


def test_a_laptop_is_measured_by_rapl(tmp_path: Path) -> None:
    package(tmp_path, 1_000_000)
    choice = choose_meter("auto", WIFI, root=tmp_path)
    assert choice.meter.name == "rapl"
    assert [name for name, _ in choice.rejected] == ["ina3221"]
    mark = choice.meter.start()
    package(tmp_path, 1_250_000)
    assert choice.meter.energy_mj(mark, Activity(busy_ms=0)) == 250.0


def test_without_hardware_the_model_serves_and_says_why(tmp_path: Path) -> None:
    choice = choose_meter("auto", LTE, root=tmp_path)
    assert choice.meter.name == "model"
    assert [name for name, _ in choice.rejected] == ["ina3221", "rapl"]
    assert choice.why.startswith("model (10 W busy, 2 W idle, lte radio); not ina3221: no INA3221 under")
    assert "not rapl: no RAPL package" in choice.why


def test_a_wrong_rail_falls_through_with_its_reason(tmp_path: Path) -> None:
    jetson(tmp_path)
    choice = choose_meter("auto", LTE, rail="VDD_IN", root=tmp_path)
    assert choice.meter.name == "model"
    assert choice.rejected[0] == ("ina3221", "no rail is labelled 'VDD_IN'; this board has POM_5V_IN")


def test_the_model_can_be_asked_for_where_hardware_would_do(tmp_path: Path) -> None:
    package(tmp_path, 0)
    choice = choose_meter("model", LTE, root=tmp_path)
    assert (choice.meter.name, choice.rejected) == ("model", ())


def test_a_meter_asked_for_by_name_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="no RAPL package"):
        choose_meter("rapl", LTE, root=tmp_path)
    with pytest.raises(StartupError, match="no power meter is called 'watts'; there are auto, ina3221"):
        choose_meter("watts", LTE, root=tmp_path)  # type: ignore[arg-type]
