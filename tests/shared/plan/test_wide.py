"""Cuts beyond the topological order, judged by brute force on small graphs and by scipy on large ones."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from shared.codec import Codec
from shared.errors import ProtocolError
from shared.graph.ir import Cut, Graph
from shared.plan.latency import Conditions, latency_ms
from shared.plan.maxflow import UNBOUNDED, FlowNetwork
from shared.plan.profile import Profile
from shared.plan.rows import FAITHFUL, build_rows
from shared.plan.wide import GRID, CutNetwork, widened_cuts
from shared.tensor import DType
from tests.shared.plan.builders import dag, networks, profile_of

Network = tuple[Graph, Profile, tuple[float, ...]]
PRICE = st.integers(0, 1000).map(float)


def every_cut(graph: Graph) -> list[Cut]:
    """All downward-closed sets of units."""
    cuts = []
    for chosen in itertools.product([False, True], repeat=len(graph.units)):
        try:
            cuts.append(graph.set_cut([unit for unit, here in enumerate(chosen) if here]))
        except ProtocolError:
            continue
    return cuts


@given(networks(9), st.data())
@settings(max_examples=80, deadline=None)
def test_the_minimum_is_that_of_all_closed_sets(network: Network, data: st.DataObject) -> None:
    graph = network[0]
    units = len(graph.units)
    device, cloud = (data.draw(st.lists(PRICE, min_size=units, max_size=units)) for _ in range(2))
    flow = CutNetwork(graph)
    prices = data.draw(st.lists(PRICE, min_size=len(flow.tensors), max_size=len(flow.tensors)))
    by_slot = {
        slot: price for tensor, price in zip(flow.tensors, prices, strict=True) for slot in tensor.sent
    }

    def total(cut: Cut) -> float:
        return (
            sum(device[unit] for unit in cut.edge_units)
            + sum(cloud[unit] for unit in cut.cloud_units)
            + sum(by_slot[slot] for slot in cut.live)
        )

    least, edge = flow.minimum(device, cloud, prices)
    best = min(every_cut(graph), key=total)
    assert least == pytest.approx(total(best))
    assert total(graph.set_cut(edge)) == pytest.approx(least)


def two_towers(first: int, second: int, rng: random.Random) -> Graph:
    """Towers of units side by side, which first shrink what they read and then go on working on it; one
    sum at the end."""
    reads: list[list[int]] = []
    sizes = [150_000]
    ends = []
    for length in (first, second):
        slot, size = 0, 400_000.0
        for depth in range(length):
            reads.append([slot])
            size *= rng.uniform(0.2, 0.5) if depth < 2 else rng.uniform(0.9, 1.1)
            sizes.append(int(size) + 10)
            slot = len(sizes) - 1
        ends.append(slot)
    reads.append(ends)
    sizes.append(10)
    return dag(reads, sizes, [len(sizes) - 1], DType.FLOAT32)


def priced(graph: Graph, rng: random.Random) -> Network:
    device = [rng.uniform(0.5, 8.0) for _ in graph.units]
    return graph, profile_of(graph, device), tuple(ms / 10 for ms in device)


def test_towers_side_by_side_gain_from_cutting_both_at_their_own_place() -> None:
    rng = random.Random(4)
    graph, profile, cloud = priced(two_towers(8, 8, rng), rng)
    cuts = widened_cuts(graph, profile, cloud)
    assert cuts
    assert all(cut.index == -1 for cut in cuts)
    assert len({cut.edge_units for cut in cuts}) == len(cuts)
    assert any({0, 8} <= set(cut.edge_units) and {7, 15} <= set(cut.cloud_units) for cut in cuts)
    narrow = build_rows(graph, profile, cloud)
    wide = build_rows(graph, profile, cloud, cuts=(*graph.cuts, *cuts))
    gains = [1 - latency_ms(wide, at).min() / latency_ms(narrow, at).min() for at in GRID]
    assert max(gains) > 0.02
    assert min(gains) >= -1e-9


@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_between_the_conditions_of_the_grid_little_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    graph, profile, cloud = priced(two_towers(rng.randint(2, 5), rng.randint(2, 5), rng), rng)
    everything = build_rows(graph, profile, cloud, cuts=every_cut(graph))
    wide = build_rows(graph, profile, cloud, cuts=(*graph.cuts, *widened_cuts(graph, profile, cloud)))
    gaps = []
    for _ in range(40):
        uplink = 10 ** rng.uniform(5, 9)
        at = Conditions(
            uplink, rng.uniform(0, 50), slowdown=rng.uniform(0.5, 5), wait_ms=rng.choice([0.0, 30.0])
        )
        at = replace(at, downlink_bps=uplink)
        gaps.append(latency_ms(wide, at).min() / latency_ms(everything, at).min() - 1)
    assert min(gaps) >= -1e-9
    assert sum(gaps) / len(gaps) < 0.005


def test_a_chain_has_nothing_to_widen() -> None:
    rng = random.Random(1)
    graph = dag([[index] for index in range(20)], [100_000] * 21, [20], DType.FLOAT32)
    assert widened_cuts(*priced(graph, rng)) == ()


def test_a_codec_that_was_not_measured_for_a_tensor_is_not_used_for_it() -> None:
    rng = random.Random(4)
    graph, profile, cloud = priced(two_towers(8, 8, rng), rng)
    for costs in profile.payloads.values():
        del costs[Codec.UINT8]  # type: ignore[attr-defined]
    cuts = widened_cuts(graph, profile, cloud, FAITHFUL)
    rows = build_rows(graph, profile, cloud, cuts=(*graph.cuts, *cuts))
    assert int(Codec.UINT8) not in rows.codec
    assert cuts


# -- the flow itself


def random_arcs(nodes: int, arcs: int, rng: random.Random) -> list[tuple[int, int, int]]:
    pairs = {(rng.randrange(nodes), rng.randrange(nodes)) for _ in range(arcs)}
    return [(tail, head, rng.randint(1, 10_000)) for tail, head in sorted(pairs) if tail != head]


@pytest.mark.parametrize(("nodes", "arcs"), [(2, 1), (6, 12), (40, 200), (400, 3000), (2000, 9000)])
@pytest.mark.parametrize("seed", range(4))
def test_the_flow_is_scipys_and_the_partition_is_worth_it(nodes: int, arcs: int, seed: int) -> None:
    rng = random.Random(seed)
    given_arcs = random_arcs(nodes, arcs, rng)
    network = FlowNetwork(nodes)
    matrix = np.zeros((nodes, nodes), dtype=np.int32)
    for tail, head, capacity in given_arcs:
        network.add_arc(tail, head, capacity)
        matrix[tail, head] = capacity
    flow, on_source_side = network.minimum_cut(0, nodes - 1)
    assert flow == maximum_flow(csr_array(matrix), 0, nodes - 1).flow_value
    assert on_source_side[0]
    assert not on_source_side[-1]
    severed = sum(
        capacity for tail, head, capacity in given_arcs if on_source_side[tail] and not on_source_side[head]
    )
    assert severed == flow


def test_an_unbounded_arc_is_never_severed_and_ties_stay_with_the_source() -> None:
    network = FlowNetwork(4)
    network.add_arc(0, 1, 5)
    network.add_arc(1, 2, UNBOUNDED)
    network.add_arc(2, 3, 5)
    assert network.minimum_cut(0, 3) == (5, [True, True, True, False])


@pytest.mark.parametrize("seed", range(3))
def test_a_large_wide_network_has_scipys_minimum(seed: int) -> None:
    rng = random.Random(seed)
    reads: list[list[int]] = []
    for unit in range(600):
        near = range(max(0, unit - 12), unit + 1)
        reads.append(sorted({rng.choice(near) for _ in range(2)} | ({0} if unit == 0 else set())))
    read = {slot for slots in reads for slot in slots}
    outputs = [slot for slot in range(1, 601) if slot not in read]
    graph = dag(reads, [rng.randint(10, 400_000) for _ in range(601)], outputs, DType.FLOAT32)
    network = CutNetwork(graph)
    device = [float(rng.randint(0, 9)) for _ in graph.units]
    cloud = [float(rng.randint(0, 2)) for _ in graph.units]
    tensors = [float(rng.randint(1, 60)) for _ in network.tensors]
    total, edge = network.minimum(device, cloud, tensors)

    large = 1_000_000
    tails, heads, capacities = [], [], []
    source, sink = 600, 601
    for unit in range(600):
        tails += [unit, source]
        heads += [sink, unit]
        capacities += [int(device[unit]), int(cloud[unit])]
    for index, (tensor, price) in enumerate(zip(network.tensors, tensors, strict=True)):
        node = 602 + index
        producer = source if tensor.producer < 0 else tensor.producer
        tails.append(producer)
        heads.append(node)
        capacities.append(int(price))
        for reader in tensor.readers:
            tails.append(node)
            heads.append(reader)
            capacities.append(large)
            if tensor.producer >= 0:
                tails.append(reader)
                heads.append(producer)
                capacities.append(large)
    size = 602 + len(network.tensors)
    matrix = csr_array((np.array(capacities, dtype=np.int32), (tails, heads)), shape=(size, size))
    assert total == maximum_flow(matrix, source, sink).flow_value
    assert graph.set_cut(edge).edge_units == edge
