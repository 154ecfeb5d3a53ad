"""One run of the simulated fleet: who is in it, what happens when, and what comes of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from bench.fleet_cloud import CloudPlan, FleetCloud
from bench.fleet_device import Device, DeviceClass, Outcome, Prototypes
from bench.fleet_network import FleetNetwork
from bench.virtual_time import Timeline
from shared.config import CloudLinkConfig
from shared.wire.messages import ModelCard

__all__ = ["Event", "FleetPlan", "FleetRun", "Sample", "run_fleet"]

_SAMPLE_MS = 100.0
_OTHERS = 500


@dataclass(frozen=True, slots=True)
class Event:
    """From ``at_s`` on: a factor on every uplink, requests per second of others, a load feed that is lost."""

    at_s: float
    uplink: float | None = None
    others_per_s: float | None = None
    feed_lost: bool | None = None


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """All devices connect at the first moment, and each then asks ``rate_hz`` times a second at random.

    ``reports`` as in :class:`bench.fleet_device.Device`.
    """

    name: str
    devices: int
    seconds: float
    rate_hz: float
    classes: Sequence[DeviceClass]
    cloud: CloudPlan
    events: Sequence[Event] = ()
    patience_ms: float = CloudLinkConfig().patience_ms
    reports: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """The cloud at one moment."""

    at_ms: float
    wait_ms: float
    queued: int
    ready: int
    target: int


@dataclass(slots=True)
class FleetRun:
    plan: FleetPlan
    outcomes: list[Outcome] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    events: int = 0


def run_fleet(
    network: FleetNetwork, plan: FleetPlan, seed: int, progress: Callable[[float], object] | None = None
) -> FleetRun:
    """Let it happen.  ``progress`` is told the share of the virtual time that has passed.

    Requests that are still under way at the end are not among the outcomes.
    """
    draw = random.Random(seed)
    time = Timeline()
    cloud = FleetCloud(network, plan.cloud, time, seed + 1)
    run = FleetRun(plan, errors=cloud.errors)
    world = _World(time, cloud, draw)
    prototypes = Prototypes(network, _card(network, plan), plan.classes, plan.patience_ms)
    edges = list(accumulate(each.share for each in plan.classes))
    for number in range(plan.devices):
        place = (number + 0.5) / plan.devices * edges[-1]
        index = next(index for index, edge in enumerate(edges) if place <= edge)
        device = Device(
            number,
            index,
            plan.classes[index],
            prototypes.controller(plan.classes[index], number),
            network.name,
            time,
            cloud,
            world.uplink_now,
            run.outcomes.append,
            random.Random(draw.getrandbits(64)),
            damped=plan.patience_ms > 0,
            reports=plan.reports,
        )
        time.at(0.0, device.connect)
        time.at(draw.uniform(0.0, 1e3 / plan.rate_hz), world.ask, device, plan.rate_hz)
    for event in plan.events:
        time.at(event.at_s * 1e3, world.change, event)

    def sample() -> None:
        state = cloud.state()
        run.samples.append(Sample(time.now_ms, state.wait_ms, state.queued, state.ready, cloud.target))
        if progress is not None:
            progress(time.now_ms / (plan.seconds * 1e3))
        time.after(_SAMPLE_MS, sample)

    sample()
    time.run(plan.seconds * 1e3)
    run.events = time.events
    return run


class _World:
    """What changes for everyone."""

    def __init__(self, time: Timeline, cloud: FleetCloud, draw: random.Random) -> None:
        self._time = time
        self._cloud = cloud
        self._draw = draw
        self._uplink = 1.0
        self._others_per_s = 0.0
        self._others_run = 0

    def uplink_now(self) -> float:
        return self._uplink

    def ask(self, device: Device, rate_hz: float) -> None:
        device.submit()
        self._time.after(self._draw.expovariate(rate_hz) * 1e3, self.ask, device, rate_hz)

    def change(self, event: Event) -> None:
        if event.uplink is not None:
            self._uplink = event.uplink
        if event.feed_lost is not None:
            self._cloud.feed_lost = event.feed_lost
        if event.others_per_s is not None:
            self._others_per_s = event.others_per_s
            self._others_run += 1
            self._ask_for_others(self._others_run)

    def _ask_for_others(self, run: int) -> None:
        if run == self._others_run and self._others_per_s:
            other = b"other" + self._draw.randrange(_OTHERS).to_bytes(2, "big")
            self._cloud.infer_for_others(other, 150_000, 1000.0)
            self._time.after(self._draw.expovariate(self._others_per_s) * 1e3, self._ask_for_others, run)


def _card(network: FleetNetwork, plan: FleetPlan) -> ModelCard:
    return ModelCard(
        name=network.name,
        digest=network.graph.digest,
        index=0,
        unit_ms=list(network.profile.unit_ms),
        replicas=plan.cloud.replicas,
    )
