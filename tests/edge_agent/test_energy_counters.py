"""Energy counters over sysfs trees laid out as the kernels of real machines do it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.energy_counters import EnergyIntegrator, Ina3221Counter, RaplCounter
from shared.errors import StartupError

HOUR_MS = 3_600_000.0


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def hwmon(bus: str, number: int, rails: dict[int, tuple[str, int, int]]) -> dict[str, str]:
    """JetPack 5 and later: label, mV, mA per channel, and the sums that the mainline driver adds."""
    base = f"sys/bus/i2c/drivers/ina3221/{bus}/hwmon/hwmon{number}"
    files = {f"{base}/name": "ina3221\n", f"{base}/in7_label": "sum of shunt voltages\n"}
    files |= {f"{base}/in7_input": "99999\n", f"{base}/in4_input": "1\n"}
    for channel, (label, millivolts, milliamperes) in rails.items():
        files[f"{base}/in{channel}_label"] = f"{label}\n"
        files[f"{base}/in{channel}_input"] = f"{millivolts}\n"
        files[f"{base}/in{channel}_enable"] = "1\n"
        files[f"{base}/curr{channel}_input"] = f"{milliamperes}\n"
    return files


def iio(bus: str, number: int, rails: dict[int, tuple[str, int]]) -> dict[str, str]:
    """JetPack 4: rail name and mW per channel."""
    base = f"sys/bus/i2c/drivers/ina3221x/{bus}/iio:device{number}"
    files = {}
    for channel, (label, milliwatts) in rails.items():
        files[f"{base}/rail_name_{channel}"] = f"{label}\n"
        files[f"{base}/in_power{channel}_input"] = f"{milliwatts}\n"
        files[f"{base}/in_current{channel}_input"] = "1\n"
    return files


ORIN_NANO = hwmon(
    "1-0040", 3, {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 5000, 300), 3: ("VDD_SOC", 5000, 260)}
)
AGX_ORIN = hwmon(
    "1-0040",
    3,
    {1: ("VDD_GPU_SOC", 19000, 200), 2: ("VDD_CPU_CV", 19000, 100), 3: ("VIN_SYS_5V0", 5000, 800)},
) | hwmon("1-0041", 4, {1: ("NC", 0, 7), 2: ("VDDQ_VDD2_1V8AO", 1800, 500), 3: ("NC", 0, 7)})
NANO = iio("6-0040", 0, {0: ("POM_5V_IN", 2500), 1: ("POM_5V_GPU", 400), 2: ("POM_5V_CPU", 900)})
AGX_XAVIER = iio("1-0040", 0, {0: ("GPU", 600), 1: ("CPU", 900), 2: ("SOC", 1100)}) | iio(
    "1-0041", 1, {0: ("CV", 0), 1: ("VDDRQ", 300), 2: ("SYS5V", 1500)}
)


class Clock:
    def __init__(self) -> None:
        self.now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


Opener = Callable[..., Ina3221Counter]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_ina3221(tmp_path: Path, clock: Clock) -> Iterator[Opener]:
    """Open over these files; the thread never gets to sample by itself within a test."""
    opened: list[Ina3221Counter] = []

    def opener(files: dict[str, str], **arguments: str | float | None) -> Ina3221Counter:
        write(tmp_path, files)
        arguments.setdefault("interval_ms", HOUR_MS)
        counter = Ina3221Counter(tmp_path, clock=clock, **arguments)  # type: ignore[arg-type]
        opened.append(counter)
        return counter

    yield opener
    for counter in opened:
        counter.close()


def one_second_mj(counter: Ina3221Counter, clock: Clock) -> float | None:
    clock.now_ms += 1000
    return counter.total_mj()


@pytest.mark.parametrize(
    ("files", "rail", "labels", "milliwatts"),
    [
        (ORIN_NANO, None, "VDD_IN", 6000),
        (ORIN_NANO, "VDD_SOC", "VDD_SOC", 1300),
        (
            AGX_ORIN,
            None,
            "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 + VDDQ_VDD2_1V8AO",
            3800 + 1900 + 4000 + 900,
        ),
        (NANO, None, "POM_5V_IN", 2500),
        (NANO, "POM_5V_GPU", "POM_5V_GPU", 400),
        (AGX_XAVIER, None, "GPU + CPU + SOC + CV + VDDRQ + SYS5V", 4400),
    ],
)
def test_the_rail_is_chosen_by_its_label(
    open_ina3221: Opener,
    clock: Clock,
    files: dict[str, str],
    rail: str | None,
    labels: str,
    milliwatts: float,
) -> None:
    counter = open_ina3221(files, rail=rail)
    assert counter.detail == f"rails {labels}"
    assert one_second_mj(counter, clock) == pytest.approx(milliwatts)


def test_a_disabled_channel_is_left_out(open_ina3221: Opener) -> None:
    off = {"sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in2_enable": "0\n"}
    assert open_ina3221(AGX_ORIN | off).detail == "rails VDD_GPU_SOC + VIN_SYS_5V0 + VDDQ_VDD2_1V8AO"


def test_power_that_changes_is_integrated(open_ina3221: Opener, clock: Clock, tmp_path: Path) -> None:
    counter = open_ina3221(NANO)
    clock.now_ms = 100
    write(tmp_path, {"sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input": "7500\n"})
    counter.sample()
    clock.now_ms = 150
    # 2500 -> 7500 mW over 100 ms, then 7500 mW held for 50 ms
    assert counter.total_mj() == pytest.approx(5000 * 0.1 + 7500 * 0.05)


def test_the_thread_samples_by_itself(open_ina3221: Opener, clock: Clock, tmp_path: Path) -> None:
    counter = open_ina3221(NANO, interval_ms=1.0)
    write(tmp_path, {"sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input": "3500\n"})
    clock.now_ms = 900.0
    while counter.total_mj() != pytest.approx(3000 * 0.9):  # ends when the thread has seen 3500 mW
        time.sleep(0.001)


def test_a_rail_that_turns_unreadable_is_missed_and_not_made_up(
    open_ina3221: Opener, clock: Clock, tmp_path: Path
) -> None:
    counter = open_ina3221(NANO, interval_ms=1.0)
    write(tmp_path, {"sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input": "busy\n"})
    while not counter.missed:
        time.sleep(0.001)
    clock.now_ms += 1001.0
    assert counter.total_mj() is None


@pytest.mark.parametrize(
    ("files", "rail", "message"),
    [
        ({}, None, "no INA3221"),
        (
            ORIN_NANO,
            "VDD_GPU",
            r"no rail is labelled 'VDD_GPU'; this board has VDD_CPU_GPU_CV, VDD_IN, VDD_SOC",
        ),
        (hwmon("1-0040", 1, {1: ("NC", 0, 0)}), None, "no INA3221"),
        (
            ORIN_NANO | {"sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input": "\x00\xff?\n"},
            None,
            "curr1_input holds .*, not a whole number",
        ),
        (NANO | {"sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input": ""}, None, "holds ''"),
    ],
)
def test_a_board_that_cannot_be_measured_says_why(
    open_ina3221: Opener, files: dict[str, str], rail: str | None, message: str
) -> None:
    with pytest.raises(StartupError, match=message):
        open_ina3221(files, rail=rail)


def test_a_power_file_that_is_missing_says_which(open_ina3221: Opener) -> None:
    files = {"sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0": "POM_5V_IN\n"}
    with pytest.raises(StartupError, match="in_power0_input"):
        open_ina3221(files)


RANGE_UJ = 262_143_328_850


def rapl(zones: dict[str, tuple[str, int]]) -> dict[str, str]:
    files = {"sys/class/powercap/intel-rapl/enabled": "1\n"}
    for zone, (label, microjoules) in zones.items():
        base = f"sys/class/powercap/{zone}"
        files[f"{base}/name"] = f"{label}\n"
        files[f"{base}/energy_uj"] = f"{microjoules}\n"
        files[f"{base}/max_energy_range_uj"] = f"{RANGE_UJ}\n"
    return files


SERVER = {
    "intel-rapl:0": ("package-0", 1_000_000),
    "intel-rapl:0:0": ("core", 700_000),
    "intel-rapl:0:1": ("dram", 50_000),
    "intel-rapl:1": ("package-1", 2_000_000),
    "intel-rapl:2": ("psys", 9_000_000),
}


def test_packages_and_memory_are_summed_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    write(tmp_path, rapl(SERVER))
    counter = RaplCounter(tmp_path)
    assert counter.detail == "package-0 + dram + package-1"
    assert counter.total_mj() == 0.0
    moved = {zone: (label, microjoules + 10_000) for zone, (label, microjoules) in SERVER.items()}
    write(tmp_path, rapl(moved))
    assert counter.total_mj() == pytest.approx(30.0)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    write(tmp_path, rapl({"intel-rapl:0": ("package-0", RANGE_UJ - 4_000)}))
    counter = RaplCounter(tmp_path)
    for microjoules, total_mj in [
        (RANGE_UJ - 1_000, 3.0),
        (2_000, 6.0),
        (2_500, 6.5),
        (1_500, RANGE_UJ / 1000 + 5.5),
    ]:
        write(tmp_path, rapl({"intel-rapl:0": ("package-0", microjoules)}))
        assert counter.total_mj() == pytest.approx(total_mj)


def test_a_reading_that_fails_is_none_and_loses_nothing(tmp_path: Path) -> None:
    write(tmp_path, rapl(SERVER))
    counter = RaplCounter(tmp_path)
    write(tmp_path, {"sys/class/powercap/intel-rapl:1/energy_uj": "oops"})
    assert counter.total_mj() is None
    write(tmp_path, rapl(SERVER | {"intel-rapl:1": ("package-1", 2_004_000)}))
    assert counter.total_mj() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no RAPL package"),
        (rapl({"intel-rapl:0": ("psys", 1)}), "no RAPL package"),
        (rapl(SERVER) | {"sys/class/powercap/intel-rapl:0/energy_uj": "12x\n"}, "holds '12x'"),
        (rapl(SERVER) | {"sys/class/powercap/intel-rapl:0/max_energy_range_uj": "0\n"}, "wraps at 0"),
        ({"sys/class/powercap/intel-rapl:0/name": "package-0\n"}, "max_energy_range_uj"),
    ],
)
def test_a_machine_without_usable_counters_says_why(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    write(tmp_path, files)
    with pytest.raises(StartupError, match=message):
        RaplCounter(tmp_path)


def test_counters_that_only_root_may_read_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's mode is 0400; the refusal is raised here by hand, since tests may run as root."""
    write(tmp_path, rapl(SERVER))
    really = Path.read_text

    def refuse(self: Path, *args: str, **kwargs: str) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return really(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(StartupError, match=r"intel-rapl:0/energy_uj is readable by root only; run as root"):
        RaplCounter(tmp_path)


def test_the_integrator_knows_nothing_before_a_sample_or_long_after() -> None:
    integrator = EnergyIntegrator(hold_ms=100)
    assert integrator.total_mj(5.0) is None
    integrator.add(10.0, 2000.0)
    assert integrator.total_mj(110.0) == pytest.approx(200.0)
    assert integrator.total_mj(110.1) is None
    integrator.add(510.0, 2000.0)
    assert integrator.total_mj(510.0) == pytest.approx(1000.0)
    with pytest.raises(ValueError, match="older"):
        integrator.add(509.0, 1.0)


@given(
    st.lists(st.tuples(st.floats(0.1, 500), st.floats(0, 50_000)), min_size=1, max_size=30),
    st.floats(0, 50_000),
)
def test_energy_lies_between_the_least_and_the_greatest_power(
    steps: list[tuple[float, float]], first_mw: float
) -> None:
    integrator = EnergyIntegrator()
    integrator.add(0.0, first_mw)
    now_ms, total_mj = 0.0, 0.0
    for wait_ms, power_mw in steps:
        now_ms += wait_ms
        integrator.add(now_ms, power_mw)
        grown = integrator.total_mj(now_ms)
        assert grown is not None
        assert grown >= total_mj
        total_mj = grown
    powers = [first_mw, *(power_mw for _, power_mw in steps)]
    assert min(powers) * now_ms / 1000 * (1 - 1e-9) <= total_mj <= max(powers) * now_ms / 1000 * (1 + 1e-9)
