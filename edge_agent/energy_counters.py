"""Energy counters of real hardware, read from sysfs: Jetson's INA3221 and the RAPL of Intel and AMD.

A counter gives the energy of the whole device in mJ since some moment; two readings bound a window.
Every file is looked for below ``root``, so that a test can lay out a machine that it does not have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import StartupError

__all__ = ["EnergyIntegrator", "Ina3221Counter", "RaplCounter"]

Clock = Callable[[], float]


def _monotonic_ms() -> float:
    return time.monotonic() * 1000


class EnergyIntegrator:
    """Integrates samples of power over time by the trapezoid rule; the time is passed in.

    Between the last sample and now the last power is held, for at most ``hold_ms``: after that the sampler
    is taken to have stopped, and :meth:`total_mj` is None until the next sample bridges the gap.
    """

    def __init__(self, hold_ms: float = 1000.0) -> None:
        self.hold_ms = hold_ms
        self._last: tuple[float, float] | None = None
        self._total_mj = 0.0

    def add(self, now_ms: float, power_mw: float) -> None:
        """Take a sample.  Raises ValueError when time runs backwards."""
        if self._last is not None:
            last_ms, last_mw = self._last
            if now_ms < last_ms:
                raise ValueError(f"sample at {now_ms} ms is older than the last at {last_ms} ms")
            self._total_mj += (power_mw + last_mw) / 2 * (now_ms - last_ms) / 1000
        self._last = (now_ms, power_mw)

    def total_mj(self, now_ms: float) -> float | None:
        """Energy since the first sample; None before it and when the last is too old."""
        if self._last is None:
            return None
        last_ms, last_mw = self._last
        if now_ms - last_ms > self.hold_ms:
            return None
        return self._total_mj + last_mw * max(0.0, now_ms - last_ms) / 1000


@dataclass(frozen=True, slots=True)
class _Rail:
    """One supply of a Jetson.  ``files`` hold mW (one file), or mV and mA (two files)."""

    label: str
    files: tuple[Path, ...]

    def power_mw(self) -> float:
        numbers = [_read_number(file) for file in self.files]
        return numbers[0] if len(numbers) == 1 else numbers[0] * numbers[1] / 1000


# Rails that measure the input of the whole module (Orin NX and Nano, Xavier NX, TX2; Nano).  Where there is
# none (AGX boards), the rails are siblings that add up.
_WHOLE_BOARD = ("VDD_IN", "POM_5V_IN")


def _find_rails(root: Path) -> list[_Rail]:
    drivers = root / "sys/bus/i2c/drivers"
    rails = []
    for label_file in sorted(drivers.glob("ina3221/*/hwmon/hwmon*/in[0-9]*_label")):
        channel = label_file.name.removeprefix("in").removesuffix("_label")
        voltage = label_file.with_name(f"in{channel}_input")
        current = label_file.with_name(f"curr{channel}_input")
        enable = label_file.with_name(f"in{channel}_enable")
        # in7 is the sum of shunt voltages: a label without a current of its own.
        if current.exists() and not (enable.exists() and _read_text(enable) == "0"):
            rails.append(_Rail(_read_text(label_file), (voltage, current)))
    for label_file in sorted(drivers.glob("ina3221x/*/iio[:_]device*/rail_name_[0-9]*")):
        channel = label_file.name.removeprefix("rail_name_")
        rails.append(_Rail(_read_text(label_file), (label_file.with_name(f"in_power{channel}_input"),)))
    return [rail for rail in rails if rail.label not in ("", "NC")]


def _choose_rails(rails: list[_Rail], wanted: str | None) -> list[_Rail]:
    if not rails:
        raise StartupError("no INA3221 under /sys/bus/i2c/drivers; only NVIDIA Jetson boards have one")
    if wanted is not None:
        chosen = [rail for rail in rails if rail.label == wanted]
        if not chosen:
            labels = ", ".join(sorted({rail.label for rail in rails}))
            raise StartupError(f"no rail is labelled {wanted!r}; this board has {labels}")
        return chosen[:1]
    for label in _WHOLE_BOARD:
        whole = [rail for rail in rails if rail.label == label]
        if whole:
            return whole[:1]
    return rails


class Ina3221Counter:
    """Samples the rails of a Jetson every ``interval_ms`` in a daemon thread of its own.

    A sample costs a few I2C transfers (about a millisecond), which is why :meth:`total_mj` does not read the
    hardware.  A sample that fails is counted in ``missed``.  ``rail`` is the label of the one to measure,
    None the whole board.  Raises StartupError when there is no rail, or one that cannot be read.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        rail: str | None = None,
        interval_ms: float = 20.0,
        clock: Clock = _monotonic_ms,
    ) -> None:
        self.missed = 0
        self._clock = clock
        self._integrator = EnergyIntegrator()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        try:
            self._rails = _choose_rails(_find_rails(root), rail)
            self.sample()
        except (OSError, ValueError) as error:
            raise StartupError(f"INA3221 cannot be read: {error}") from error
        self._thread = threading.Thread(
            target=self._keep_sampling, args=(interval_ms / 1000,), name="ina3221", daemon=True
        )
        self._thread.start()

    @property
    def detail(self) -> str:
        return "rails " + " + ".join(rail.label for rail in self._rails)

    def sample(self) -> None:
        """Read the rails once.  Raises OSError or ValueError, and then takes no sample."""
        power_mw = sum(rail.power_mw() for rail in self._rails)
        with self._lock:
            self._integrator.add(self._clock(), power_mw)

    def _keep_sampling(self, interval_s: float) -> None:
        while not self._stop.wait(interval_s):
            try:
                self.sample()
            except (OSError, ValueError):
                self.missed += 1

    def total_mj(self) -> float | None:
        with self._lock:
            return self._integrator.total_mj(self._clock())

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@dataclass(slots=True)
class _Zone:
    label: str
    file: Path
    range_uj: float
    last_uj: float
    total_uj: float = 0.0


def _open_zone(directory: Path, label: str) -> _Zone:
    file = directory / "energy_uj"
    range_uj = _read_number(directory / "max_energy_range_uj")
    if range_uj <= 0:
        raise ValueError(f"{directory} says that its counter wraps at {range_uj:g}")
    return _Zone(label, file, range_uj, _read_number(file))


class RaplCounter:
    """Sums the energy counters of all packages and their memory (``dram``), unwrapped.

    A counter wraps at ``max_energy_range_uj``, after an hour or more; windows shorter than one turn are
    exact.  Call from one thread.  Raises StartupError when there is no counter, or when the kernel lets only
    root read it.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._zones: list[_Zone] = []
        for directory in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
            try:
                label = _read_text(directory / "name")
                # core and uncore are inside their package, psys is around it: either would count twice.
                if label.startswith("package") or label == "dram":
                    self._zones.append(_open_zone(directory, label))
            except PermissionError as error:
                raise StartupError(
                    f"{error.filename} is readable by root only; run as root, or grant your user read access"
                ) from error
            except (OSError, ValueError) as error:
                raise StartupError(f"RAPL cannot be read: {error}") from error
        if not self._zones:
            raise StartupError("no RAPL package under /sys/class/powercap, as in most virtual machines")

    @property
    def detail(self) -> str:
        return " + ".join(zone.label for zone in self._zones)

    def total_mj(self) -> float | None:
        """Energy since the counter was opened; None when a file could not be read this time."""
        try:
            readings = [_read_number(zone.file) for zone in self._zones]
        except (OSError, ValueError):
            return None
        for zone, now_uj in zip(self._zones, readings, strict=True):
            # Linux: the counter runs from 0 to max_energy_range_uj and then starts again at 0.
            zone.total_uj += (now_uj - zone.last_uj) % zone.range_uj
            zone.last_uj = now_uj
        return sum(zone.total_uj for zone in self._zones) / 1000

    def close(self) -> None:
        """Nothing to release; counters run in the hardware."""


def _read_text(file: Path) -> str:
    return file.read_text(encoding="ascii", errors="replace").strip()


def _read_number(file: Path) -> float:
    text = _read_text(file)
    try:
        return float(int(text))
    except ValueError as error:
        raise ValueError(f"{file} holds {text[:40]!r}, not a whole number") from error
