"""Cuts beyond the topological ones, for networks of wide cells, by minimum cuts.

A cut gives a downward-closed set of units to the device.  For given prices it is a minimum cut of a flow
network (as in DADS, Hu et al., INFOCOM 2019): a unit on the device severs its arc to the cloud's terminal,
a unit in the cloud the arc from the device's; a tensor is a node that is severed once, however many units
read it; and unbounded arcs from every reader back to the producer, which DADS leaves out, forbid a result
of the cloud from being used by the device.

A plan is made in microseconds from rows, so the cuts worth having are found beforehand, over a grid of
conditions, and become rows as any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.codec import Codec
from shared.plan.latency import Conditions, latency_ms
from shared.plan.maxflow import UNBOUNDED, FlowNetwork
from shared.plan.profile import CodecCost, Profile
from shared.plan.rows import FAITHFUL, PLAIN, build_rows, decode_scale, output_costs

if TYPE_CHECKING:
    from shared.graph.ir import Cut, Graph

__all__ = ["GRID", "CutNetwork", "widened_cuts"]

_STEPS_PER_MS = 1_000_000
"""Capacities are integers of nanoseconds."""

GRID = tuple(
    Conditions(uplink_bps=uplink, rtt_ms=0.0, slowdown=slowdown, downlink_bps=uplink)
    for slowdown in (0.5, 1.0, 2.0, 5.0)
    for uplink in np.geomspace(1e5, 1e9, 17).tolist()
)
"""Where wider cuts are looked for: they lie between, by the same token, at most other conditions."""

_LEAST_GAIN = 0.001


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What is paid for once: a tensor and its views.  ``sent`` are the slots that travel for it."""

    producer: int
    readers: tuple[int, ...]
    sent: tuple[int, ...]


class CutNetwork:
    """The flow network of one graph; prices are given for every cut that is asked for."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        flow = graph.flow
        readers: dict[int, set[int]] = {}
        arcs: set[tuple[int, int]] = set()
        for slot, producer in flow.producer.items():
            others = {unit for unit in flow.users[slot] if unit != producer}
            readers.setdefault(flow.root(slot), set()).update(others)
            if producer >= 0:
                arcs |= {(unit, producer) for unit in others}
        self._needs = tuple(sorted(arcs))
        tensors = []
        for root, units in readers.items():
            producer = flow.producer[root]
            live = graph.cuts[producer + 1].live
            outside = tuple(sorted(unit for unit in units if unit != producer))
            if outside:
                sent = tuple(slot for slot in live if flow.root(slot) == root)
                tensors.append(_Tensor(producer, outside, sent))
        self.tensors = tuple(tensors)

    def minimum(
        self, device_ms: Sequence[float], cloud_ms: Sequence[float], tensor_ms: Sequence[float]
    ) -> tuple[float, tuple[int, ...]]:
        """The least total of unit and tensor prices, and the units on the device; as many as possible
        among equals.

        ``device_ms`` and ``cloud_ms`` price every unit on either side, the cloud's with the way back of
        what it computes; ``tensor_ms`` prices every one of :attr:`tensors`.
        """
        units = len(self._graph.units)
        device, cloud = units, units + 1
        network = FlowNetwork(units + 2)
        base = 0
        for unit in range(units):
            here, there = _steps(device_ms[unit]), _steps(cloud_ms[unit])
            common = min(here, there)
            base += common
            if there > common:
                network.add_arc(device, unit, there - common)
            elif here > common:
                network.add_arc(unit, cloud, here - common)
        for tensor, ms in zip(self.tensors, tensor_ms, strict=True):
            source = device if tensor.producer < 0 else tensor.producer
            if len(tensor.readers) == 1:
                network.add_arc(source, tensor.readers[0], _steps(ms))
                continue
            node = network.add_node()
            network.add_arc(source, node, _steps(ms))
            for reader in tensor.readers:
                network.add_arc(node, reader, UNBOUNDED)
        for reader, producer in self._needs:
            network.add_arc(reader, producer, UNBOUNDED)
        total, on_device = network.minimum_cut(device, cloud)
        edge = tuple(unit for unit in range(units) if on_device[unit])
        return (total + base) / _STEPS_PER_MS, edge


def widened_cuts(
    graph: Graph,
    profile: Profile,
    cloud_unit_ms: Sequence[float],
    codecs: Sequence[Codec] = FAITHFUL,
    grid: Iterable[Conditions] = GRID,
) -> tuple[Cut, ...]:
    """The cuts beyond the topological ones that are better than all of these, by 0.1% at least, somewhere
    on the grid; none for most networks.

    Takes no time for a chain, tenths of a second for a network without wide cells and seconds for one of a
    thousand units with them: not for an event loop.
    """
    if _is_chain(graph):
        return ()
    network = CutNetwork(graph)
    rows = build_rows(graph, profile, cloud_unit_ms, codecs)
    menu = sorted({*codecs, PLAIN})
    prices = {codec: _Prices(graph, profile, cloud_unit_ms, network, codec) for codec in menu}
    found: dict[tuple[int, ...], Cut] = {}
    for at in grid:
        plain_ms = float(latency_ms(rows, at).min())
        per_codec = {codec: price.tensor_ms(at) for codec, price in prices.items()}
        device_ms, cloud_ms = prices[PLAIN].unit_ms(at)
        bound_ms, _ = network.minimum(
            device_ms, cloud_ms, np.minimum.reduce(list(per_codec.values())).tolist()
        )
        if bound_ms > (1 - _LEAST_GAIN) * plain_ms:
            continue
        total_ms, edge = min(
            network.minimum(device_ms, cloud_ms, tensor_ms.tolist()) for tensor_ms in per_codec.values()
        )
        if total_ms <= (1 - _LEAST_GAIN) * plain_ms and edge not in found:
            cut = graph.set_cut(edge)
            if cut.index < 0:
                found[edge] = cut
    return tuple(found.values())


class _Prices:
    """What the units and the tensors of a network cost under given conditions, in one codec."""

    def __init__(
        self,
        graph: Graph,
        profile: Profile,
        cloud_unit_ms: Sequence[float],
        network: CutNetwork,
        codec: Codec,
    ) -> None:
        self._device, self._cloud = np.array(profile.unit_ms), np.array(cloud_unit_ms)
        self._decoding = decode_scale(self._device, self._cloud)
        self._results = output_costs(graph, profile)
        unknown = CodecCost(math.inf, math.inf, math.inf)
        costs = [
            [profile.payloads.get(slot, {}).get(codec, unknown) for slot in tensor.sent]
            for tensor in network.tensors
        ]
        self._payloads = np.array([np.sum(each, axis=0) for each in costs]).reshape(len(costs), 3)

    def tensor_ms(self, at: Conditions) -> NDArray[np.float64]:
        """``inf`` for a tensor that was not measured in this codec."""
        bytes_ms = 8000.0 / at.uplink_bps
        rates = np.array([bytes_ms, at.encode, at.decode * self._decoding])
        prices: NDArray[np.float64] = self._payloads @ (rates * at.batch)
        return prices

    def unit_ms(self, at: Conditions) -> tuple[list[float], list[float]]:
        device = self._device * (at.device * at.batch)
        cloud = self._cloud * (at.slowdown * at.cloud * at.batch)
        for producer, result in self._results:
            cloud[producer] += at.batch * (
                result.payload_bytes * 8000.0 / at.downlink_bps
                + result.encode_ms * at.decode * self._decoding
                + result.decode_ms * at.encode
            )
        return device.tolist(), cloud.tolist()


def _is_chain(graph: Graph) -> bool:
    """Whether every unit reads what the one before it writes, so that all cuts are topological."""
    return all(
        any(graph.flow.producer.get(slot) == before.index for slot in unit.reads)
        for before, unit in pairwise(graph.units)
    )


def _steps(ms: float) -> int:
    return UNBOUNDED if math.isinf(ms) else round(ms * _STEPS_PER_MS)
