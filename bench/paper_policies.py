"""The ways of choosing a row that the paper's table compares, for latency and for the device's energy.

All know the true times of every unit and the true rate of the link; they differ in what they look at.  Each
returns a row of the same :class:`shared.plan.rows.Rows`, whose cost is then the product's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.candidates import cheapest_cloud, cloud_only, papers_choice, papers_energy_choice
from shared.codec import Codec
from shared.graph.ir import Cut, Graph
from shared.plan.energy import Power
from shared.plan.latency import Conditions
from shared.plan.objective import Energy, Latency
from shared.plan.profile import Profile
from shared.plan.radio import power_mw
from shared.plan.rows import Rows
from shared.plan.solve import choose
from shared.plan.wide import CutNetwork

__all__ = ["POLICIES", "Situation", "min_cut"]


@dataclass(frozen=True, slots=True)
class Situation:
    """One network on one device over one link; ``min_cuts`` are what :func:`min_cut` finds for
    latency and for energy; both are among the rows."""

    graph: Graph
    profile: Profile
    cloud_unit_ms: tuple[float, ...]
    rows: Rows
    conditions: Conditions
    power: Power
    min_cuts: tuple[Cut, Cut]

    @property
    def radio_w(self) -> float:
        return power_mw(self.power.link, self.conditions.uplink_bps / 1e6) / 1e3

    @property
    def upload_ms(self) -> NDArray[np.float64]:
        return self.rows.payload_bytes * 8000.0 / self.conditions.uplink_bps


Policy = Callable[[Situation, bool], int]
"""``energy`` says that it is energy that is to be little, not latency."""


def _status_quo(at: Situation, energy: bool) -> int:
    """Everything in the cloud, the input as it is."""
    row = at.rows.find(at.graph.cuts[0], Codec.FLOAT32)
    assert row is not None
    return row


def _cloud_best_codec(at: Situation, energy: bool) -> int:
    if energy:
        return cheapest_cloud(at.rows, at.conditions, at.power)
    return cloud_only(at.rows, at.conditions)


def _device_only(at: Situation, energy: bool) -> int:
    return at.rows.local


def _paper(at: Situation, energy: bool) -> int:
    if energy:
        return papers_energy_choice(at.rows, at.conditions, at.power)
    return papers_choice(at.rows, at.conditions)


def _maui(at: Situation, energy: bool) -> int:
    """As MAUI (Cuervo et al., MobiSys 2010) would see a network: every layer is a call to the same method,
    whose time on either side is the average of the calls so far, whatever layer it was called for.

    What a call would send is known to it, and it goes to the cloud once.
    """
    rows = at.rows
    on_device = np.array([len(rows.cut_of(row).edge_units) for row in range(len(rows))])
    units = len(at.profile.unit_ms)
    device_ms = on_device * (sum(at.profile.unit_ms) / units)
    cloud_ms = (units - on_device) * (sum(at.cloud_unit_ms) / units)
    if energy:
        believed = at.power.busy_w * device_ms + at.radio_w * at.upload_ms
    else:
        believed = device_ms + at.upload_ms + cloud_ms
    chain = np.array([rows.cut_of(row).index >= 0 for row in range(len(rows))])
    plain = (rows.codec == int(Codec.FLOAT32)) & (rows.mix < 0)
    return int(np.argmin(np.where(chain & plain, believed, np.inf)))


def _dads(at: Situation, energy: bool) -> int:
    """As DADS (Hu et al., INFOCOM 2019): a minimum cut of the graph, tensors as they are."""
    row = at.rows.find(at.min_cuts[energy], Codec.FLOAT32)
    assert row is not None
    return row


def _suture(at: Situation, energy: bool) -> int:
    objective = Energy(at.power) if energy else Latency()
    return choose(objective.score(at.rows, at.conditions)).row


POLICIES: dict[str, Policy] = {
    "status quo": _status_quo,
    "cloud, best codec": _cloud_best_codec,
    "device only": _device_only,
    "paper": _paper,
    "MAUI-like": _maui,
    "DADS-like": _dads,
    "Suture": _suture,
}


def min_cut(
    graph: Graph,
    profile: Profile,
    cloud_unit_ms: tuple[float, ...],
    conditions: Conditions,
    power: Power,
    *,
    energy: bool,
) -> Cut:
    """The units that a minimum cut leaves on the device, by latency, or by the device's energy for
    computing and sending."""
    network = CutNetwork(graph)
    upload_ms = [
        sum(profile.payloads[slot][Codec.FLOAT32].payload_bytes for slot in tensor.sent)
        * 8000.0
        / conditions.uplink_bps
        for tensor in network.tensors
    ]
    if energy:
        radio_w = power_mw(power.link, conditions.uplink_bps / 1e6) / 1e3
        device = [ms * power.busy_w for ms in profile.unit_ms]
        cloud, sending = [0.0] * len(device), [ms * radio_w for ms in upload_ms]
    else:
        device, cloud, sending = list(profile.unit_ms), list(cloud_unit_ms), upload_ms
    _, edge = network.minimum(device, cloud, sending)
    return graph.set_cut(edge)
