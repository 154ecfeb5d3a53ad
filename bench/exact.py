"""The exact judge of plans: the least latency over every set of units and every codec, by max-flow.

Planning minimises over cuts that it has listed.  The judge minimises over all closed sets of units at once,
with the codec of every tensor chosen for itself, and shares no code with the planner.

In the flow network whatever is on the sink's side is in the cloud.  A unit has a node, and a tensor has one:
"the cloud has it".  Arcs that cannot be cut say that nothing flows back to the device, and that a unit in
the cloud finds there what it reads.  The arc into a tensor comes from the unit that makes it, and cutting it
pays for sending the tensor once, however many read it; into a view it comes from what that is a view of.

Capacities are integers: with floats, the partitions that one library returned were not minimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from shared.codec import Codec
from shared.graph.ir import Graph
from shared.plan.latency import Conditions
from shared.plan.profile import Profile

__all__ = ["Exact", "Judge"]

Array = NDArray[np.float64]

_UNCUTTABLE = 2**30
_LARGEST = 2**28
"""The capacity of all that is ever worth cutting, so that no sum leaves scipy's 32 bits."""

_SOURCE, _SINK, _FIRST_UNIT = 0, 1, 2

_COPY_BYTES_PER_MS = 2e6


class Exact(NamedTuple):
    """The least latency there is, and the units that then run on the device."""

    latency_ms: float
    edge_units: tuple[int, ...]


class Judge:
    """Knows one network on one device and one cloud; ``codecs`` are those that may be used."""

    def __init__(
        self, graph: Graph, profile: Profile, cloud_unit_ms: Sequence[float], codecs: Sequence[Codec]
    ) -> None:
        self._graph = graph
        self._device = np.array(profile.unit_ms)
        self._cloud = np.array(cloud_unit_ms)
        scale = float(np.clip(self._cloud.sum() / max(self._device.sum(), 1e-12), 0.1, 2.0))
        flow = graph.flow
        self._slots = tuple(flow.producer)
        # Per slot and codec: bytes, ms on the device and ms in the cloud.  Unmeasured: cannot be sent.
        never = (np.inf, np.inf, np.inf)
        self._sending = np.array(
            [[profile.payloads.get(slot, {}).get(codec, never) for codec in codecs] for slot in self._slots],
            dtype=np.float64,
        ) * np.array([1.0, 1.0, scale])
        results = np.zeros((len(self._device), 3))
        for slot in set(graph.outputs):
            owner = flow.producer.get(slot, -1)
            if owner >= 0:
                nbytes = float(graph.values[slot].at(1).nbytes)
                copy_ms = nbytes / _COPY_BYTES_PER_MS
                cost = profile.payloads.get(slot, {}).get(Codec.FLOAT32, (nbytes, copy_ms, copy_ms))
                results[owner] += np.array(cost) * np.array([1.0, scale, 1.0])
        self._results = results
        self._lay_out()

    def _lay_out(self) -> None:
        """The arcs: those that cannot be cut, and for each slot the one that pays for it."""
        flow, units = self._graph.flow, len(self._device)
        self._has = {slot: _FIRST_UNIT + units + index for index, slot in enumerate(self._slots)}
        fixed: set[tuple[int, int]] = set()
        payers = []
        for slot in self._slots:
            owner = flow.producer[slot]
            maker = _SOURCE if owner < 0 else _FIRST_UNIT + owner
            for user in flow.users[slot]:
                fixed.add((self._has[slot], _FIRST_UNIT + user))
                if owner not in (-1, user):
                    fixed.add((_FIRST_UNIT + user, maker))
            payers.append(self._has[flow.parent[slot]] if slot in flow.parent else maker)
        self._fixed = np.array(sorted(fixed)).reshape(-1, 2)
        self._payers = np.array(payers)
        self._payees = np.array([self._has[slot] for slot in self._slots])

    def best(self, conditions: Conditions) -> Exact:
        """The optimum under these conditions; all on the device where nothing is faster."""
        batch = conditions.batch
        up, down = (8000.0 * batch / bps for bps in (conditions.uplink_bps, conditions.downlink_bps))
        coding = np.array([conditions.encode * batch, conditions.decode * batch])
        device = self._device * conditions.device * batch
        cloud = self._cloud * conditions.cloud * conditions.slowdown * batch
        cloud = cloud + self._results @ np.array([down, coding[1], coding[0]])
        send = (self._sending @ np.array([up, *coding])).min(axis=1)
        always = conditions.queue_ms + conditions.overhead_ms
        crossing = conditions.rtt_ms + conditions.network_ms + conditions.wait_ms
        local = Exact(float(device.sum()) + always, tuple(range(len(device))))
        in_cloud, sent = self._minimum_cut(device, cloud, send)
        if not conditions.reachable or not in_cloud.any():
            return local
        remote_ms = float(device[~in_cloud].sum() + cloud[in_cloud].sum() + send[sent].sum())
        remote = Exact(remote_ms + crossing + always, tuple(np.flatnonzero(~in_cloud).tolist()))
        return min(local, remote, key=lambda each: each.latency_ms)

    def _minimum_cut(
        self, device: Array, cloud: Array, send: Array
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which units are in the cloud, and which slots are paid for."""
        units = len(device)
        saved = np.maximum(device - cloud, 0.0)  # by a unit that moves to the cloud
        lost = np.maximum(cloud - device, 0.0)
        most = float(saved.sum())
        if most <= 0:
            return np.zeros(units, dtype=np.bool_), np.zeros(len(send), dtype=np.bool_)
        scale = _LARGEST / most

        def capacity(ms: Array) -> NDArray[np.int64]:
            # Nothing dearer than all that can be saved is ever cut.
            return np.rint(np.minimum(ms, most * 1.001) * scale).astype(np.int64)

        nodes = np.arange(_FIRST_UNIT, _FIRST_UNIT + units)
        tails = [np.full(units, _SOURCE), nodes, self._payers, self._fixed[:, 0]]
        heads = [nodes, np.full(units, _SINK), self._payees, self._fixed[:, 1]]
        capacities = [
            capacity(lost),
            capacity(saved),
            capacity(send),
            np.full(len(self._fixed), _UNCUTTABLE),
        ]
        count = _FIRST_UNIT + units + len(send)
        network = csr_matrix(
            (
                np.concatenate(capacities).astype(np.int32),
                (np.concatenate(tails), np.concatenate(heads)),
            ),
            shape=(count, count),
        )
        residual: Any = network - maximum_flow(network, _SOURCE, _SINK).flow
        residual.eliminate_zeros()
        reached = breadth_first_order(residual, _SOURCE, return_predecessors=False)
        far = np.ones(count, dtype=np.bool_)
        far[reached] = False
        return far[nodes], far[self._payees] & ~far[self._payers]
