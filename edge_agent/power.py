"""Energy of the device: measured where the hardware can, modelled where it cannot.

::

    ina3221   Jetson's power monitors, sampled         edge_agent.energy_counters
    rapl      the counters of Intel and AMD packages   edge_agent.energy_counters
    model     busy and idle watts times durations, plus the radio's model of shared.plan.radio

:func:`choose_meter` takes the first that works and says why the others do not.  A measuring meter sees the
whole device over a window of time, whatever ran in it; the model sees the one request it is asked about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from edge_agent.energy_counters import Ina3221Counter, RaplCounter
from shared.errors import StartupError
from shared.plan import radio
from shared.plan.energy import Power

__all__ = [
    "Activity",
    "MeasuringMeter",
    "MeterChoice",
    "MeterKind",
    "ModelMeter",
    "PowerMeter",
    "choose_meter",
]

MeterKind = Literal["auto", "ina3221", "rapl", "model"]


@dataclass(frozen=True, slots=True)
class Activity:
    """What one request made the device do, for a meter that has to reckon instead of measure.

    ``busy_ms`` is computing and coding; ``idle_ms`` is waiting, transfers included.  Rates are in Mbps and
    needed only where there are bytes.
    """

    busy_ms: float
    idle_ms: float = 0.0
    uplink_bytes: int = 0
    uplink_mbps: float = 0.0
    downlink_bytes: int = 0
    downlink_mbps: float = 0.0


class PowerMeter(Protocol):
    """``name`` is the short word for results and metrics; ``detail`` tells a person what is covered."""

    @property
    def name(self) -> str: ...

    @property
    def detail(self) -> str: ...

    def start(self) -> float | None:
        """Open a window now.  The mark means something only to :meth:`energy_mj` of the same meter."""

    def energy_mj(self, since: float | None, activity: Activity) -> float | None:
        """Energy in mJ since that mark; None when the hardware had no reading at either end."""

    def close(self) -> None:
        """Stop what the meter keeps running.  May be called twice."""


class EnergyCounter(Protocol):
    """Hardware that counts: mJ since some moment, None when it cannot say now."""

    @property
    def detail(self) -> str: ...
    def total_mj(self) -> float | None: ...
    def close(self) -> None: ...


class MeasuringMeter:
    """A window between two readings of a counter; overlapping windows each hold the whole device's energy."""

    def __init__(self, name: str, counter: EnergyCounter) -> None:
        self.name = name
        self._counter = counter

    @property
    def detail(self) -> str:
        return self._counter.detail

    def start(self) -> float | None:
        return self._counter.total_mj()

    def energy_mj(self, since: float | None, activity: Activity) -> float | None:
        total_mj = self._counter.total_mj()
        if since is None or total_mj is None:
            return None
        # A counter that samples holds its last power until the next sample, which may correct it downwards.
        return max(0.0, total_mj - since)

    def close(self) -> None:
        self._counter.close()


class ModelMeter:
    """Watts times durations plus the radio: ``busy W * busy ms + idle W * idle ms + radio mJ``.

    This is how the paper reckons a request's energy (Kang et al., ASPLOS 2017), with the idle term added.
    """

    name = "model"

    def __init__(self, power: Power) -> None:
        self.power = power

    @property
    def detail(self) -> str:
        return f"{self.power.busy_w:g} W busy, {self.power.idle_w:g} W idle, {self.power.link} radio"

    def start(self) -> float:
        return 0.0

    def energy_mj(self, since: float | None, activity: Activity) -> float:
        device_mj = self.power.busy_w * activity.busy_ms + self.power.idle_w * activity.idle_ms
        return device_mj + radio.energy_mj(
            self.power.link,
            activity.uplink_bytes,
            activity.uplink_mbps,
            activity.downlink_bytes,
            activity.downlink_mbps,
        )

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True, slots=True)
class MeterChoice:
    """The meter in use, and for each that was tried before it the reason why not."""

    meter: PowerMeter
    rejected: tuple[tuple[str, str], ...]

    @property
    def why(self) -> str:
        """One line for a person, e.g. ``model (10 W busy, ...); not rapl: no RAPL package ...``."""
        refusals = [f"not {name}: {reason}" for name, reason in self.rejected]
        return "; ".join([f"{self.meter.name} ({self.meter.detail})", *refusals])


def choose_meter(
    kind: MeterKind,
    power: Power,
    rail: str | None = None,
    root: Path = Path("/"),
) -> MeterChoice:
    """The meter of that kind, or for ``auto`` the first that works of ina3221, rapl and model.

    ``power`` is what plans for energy assume as well.  ``rail`` is the label of the Jetson rail to measure;
    None takes the whole board.  Raises StartupError with the reason when a meter was asked for by name and
    does not work, and for an unknown kind.
    """
    measuring: dict[str, Callable[[], EnergyCounter]] = {
        "ina3221": lambda: Ina3221Counter(root, rail),
        "rapl": lambda: RaplCounter(root),
    }
    if kind not in get_args(MeterKind):
        raise StartupError(f"no power meter is called {kind!r}; there are {', '.join(get_args(MeterKind))}")
    if kind in measuring:
        return MeterChoice(MeasuringMeter(kind, measuring[kind]()), ())
    rejected: list[tuple[str, str]] = []
    if kind == "auto":
        for name, open_counter in measuring.items():
            try:
                return MeterChoice(MeasuringMeter(name, open_counter()), tuple(rejected))
            except StartupError as error:
                rejected.append((name, str(error)))
    return MeterChoice(ModelMeter(power), tuple(rejected))
