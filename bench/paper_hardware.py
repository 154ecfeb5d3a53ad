"""The paper's machines and links, modelled: what is known of them, what is fitted, and a cell of the table.

Known are the hardware's peaks, the paper's times of AlexNet on each machine and the rates of its links.
Three kinds of numbers are fitted to what the paper says, each to one figure:

* each machine's efficiency, to its time of AlexNet;
* what an operator costs a device beyond the roofline, to the paper's greatest speed-up;
* what a busy device draws, to the paper's greatest saving.

The two greatest are those of the smallest networks over the slowest link, which hardly depend on anything
else.  The paper's means are left to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bench.paper_policies import POLICIES, Situation, min_cut
from bench.roofline import Roofline
from shared.graph.ir import Graph
from shared.plan.energy import Power, energy_mj
from shared.plan.features import UnitFeatures, unit_features
from shared.plan.latency import Conditions, latency_ms
from shared.plan.profile import CodecCost, Profile
from shared.plan.radio import LinkType
from shared.plan.rows import FAITHFUL, build_rows
from shared.plan.stages import POSITION, Stage

__all__ = [
    "ALEXNET_MS",
    "DEVICES",
    "IDLE_W",
    "LINKS",
    "PAPERS_MAX",
    "Account",
    "Hardware",
    "Link",
    "Network",
]

ALEXNET_MS = {"TK1 CPU": 382.0, "TK1 GPU": 81.0, "K40": 6.0}
PAPERS_MAX = {"ms": 40.7, "mJ": 94.7}
"""The paper's greatest: times faster than the status quo, and per cent of its energy saved."""

_MACHINES = (
    Roofline("TK1 CPU", 73.6, 14.9, 0.02),  # 4 Cortex-A15 at 2.3 GHz with NEON, DDR3L-933 of 64 bits
    Roofline("TK1 GPU", 327.0, 14.9, 0.05),  # 192 Kepler cores at 852 MHz, the same memory
    Roofline("K40", 4290.0, 288.0, 0.02),  # 2880 Kepler cores at 745 MHz, GDDR5
)
DEVICES, _CLOUD = ("TK1 CPU", "TK1 GPU"), "K40"

IDLE_W = 1.6
"""Of the whole TK1 board (eLinux, "Jetson TK1 Power"); counts only where everything does."""

_FREE_BPS = 1e15
_STEPS = 30


class Link(NamedTuple):
    """The uplink rates of the paper; the round trips, which it leaves out, are ours."""

    type: LinkType
    mbps: float
    rtt_ms: float


LINKS = (Link(LinkType.WIFI, 12.8, 10.0), Link(LinkType.LTE, 6.8, 40.0), Link(LinkType.THREE_G, 1.4, 60.0))


class Account(NamedTuple):
    """What costs something: ``everything``, or only what the paper counts, which leaves out round trips, the
    answer's way back and waiting.  ``per_op`` multiplies what an operator costs a device."""

    name: str
    per_op: float
    busy_w: float
    everything: bool = False


class Network(NamedTuple):
    """``here`` is its profile on this machine, of which the payloads and the codecs' times are used."""

    graph: Graph
    here: Profile
    units: tuple[UnitFeatures, ...]

    @classmethod
    def of(cls, graph: Graph, here: Profile) -> Network:
        return cls(graph, here, unit_features(graph))


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machines for these networks, AlexNet among them, which they are calibrated on.

    Codecs take a device ``codecs_slower`` times as long as this machine, as AlexNet takes its processor.
    """

    networks: Mapping[str, Network]

    @property
    def codecs_slower(self) -> float:
        return ALEXNET_MS["TK1 CPU"] / self.networks["alexnet"].here.whole_ms

    def machines(self, per_op: float) -> dict[str, Roofline]:
        """By name, each with the efficiency at which AlexNet takes what it took the paper."""
        found = {}
        for machine in _MACHINES:
            factor = per_op if machine.name in DEVICES else 1.0
            told = replace(machine, per_op_ms=machine.per_op_ms * factor)
            found[machine.name] = told.calibrated(self.networks["alexnet"].units, ALEXNET_MS[machine.name])
        return found

    def situation(self, name: str, link: Link, device: str, account: Account) -> Situation:
        """What there is to choose from in one cell, and under which conditions."""
        machines = self.machines(account.per_op)
        graph, here, units = self.networks[name]
        profile = device_profile(here, [machines[device].unit_ms(unit) for unit in units], self.codecs_slower)
        cloud_unit_ms = tuple(machines[_CLOUD].unit_ms(unit) for unit in units)
        uplink_bps = link.mbps * 1e6
        conditions = Conditions(
            uplink_bps=uplink_bps,
            rtt_ms=link.rtt_ms if account.everything else 0.0,
            downlink_bps=uplink_bps if account.everything else _FREE_BPS,
        )
        power = Power(account.busy_w, min(IDLE_W, account.busy_w) if account.everything else 0.0, link.type)
        cuts = tuple(
            min_cut(graph, profile, cloud_unit_ms, conditions, power, energy=energy)
            for energy in (False, True)
        )
        beyond = [cut for cut in dict.fromkeys(cuts) if cut.index < 0]
        rows = build_rows(graph, profile, cloud_unit_ms, FAITHFUL, (*graph.cuts, *beyond))
        if not account.everything:
            columns = rows.columns.copy()
            columns[POSITION[Stage.DOWNLINK]] = 0.0  # a radio's line has no rate at which a byte is free
            rows = replace(rows, columns=columns)
        return Situation(graph, profile, cloud_unit_ms, rows, conditions, power, (cuts[0], cuts[1]))

    def fitted(self) -> Account:
        """The paper's account, in which its own policy gains as much at best as it did there.

        Raises ValueError where that cannot be, which these networks may be too large for.
        """
        per_op = _bisect(lambda factor: self._greatest(Account("", factor, 1.0)), PAPERS_MAX["ms"], 0.1, 20.0)
        saved = 1 / (1 - PAPERS_MAX["mJ"] / 100)
        busy_w = _bisect(lambda watts: self._greatest(Account("", per_op, watts), True), saved, 0.1, 30.0)
        return Account("paper", per_op, busy_w)

    def _greatest(self, account: Account, energy: bool = False) -> float:
        """By what factor the paper's policy takes less than the status quo, where it gains most."""
        gains = []
        for name in self.networks:
            for link in LINKS:
                for device in DEVICES:
                    at = self.situation(name, link, device, account)
                    costs = (
                        energy_mj(at.rows, at.conditions, at.power)
                        if energy
                        else latency_ms(at.rows, at.conditions)
                    )
                    status_quo, paper = (POLICIES[policy](at, energy) for policy in ("status quo", "paper"))
                    gains.append(float(costs[status_quo] / costs[paper]))
        return max(gains)


def device_profile(here: Profile, unit_ms: Sequence[float], codecs_slower: float) -> Profile:
    """A profile as a device would have measured it: payloads as here, its own times of units and codecs."""
    return replace(
        here,
        unit_ms=tuple(unit_ms),
        unit_spread_ms=(0.0,) * len(unit_ms),
        whole_ms=sum(unit_ms),
        payloads={
            slot: {
                codec: CodecCost(
                    cost.payload_bytes, cost.encode_ms * codecs_slower, cost.decode_ms * codecs_slower
                )
                for codec, cost in costs.items()
            }
            for slot, costs in here.payloads.items()
        },
    )


def _bisect(gain: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a gain that falls is ``wanted``, in log space.  Raises ValueError where it is nowhere."""
    if not gain(low) >= wanted >= gain(high):
        raise ValueError(f"a gain between {gain(high):.3g} and {gain(low):.3g} is never {wanted:.3g}")
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gain(middle) >= wanted else (low, middle)
    return math.sqrt(low * high)
