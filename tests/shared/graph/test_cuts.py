"""Live sets on graphs written by hand, and cuts that are not topological on real ones."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.errors import ProtocolError
from shared.graph import BatchInt, Cut, Graph, Op, Program, Ref, Unit, load
from shared.graph.capture import capture
from shared.graph.tree import Tree
from shared.graph.units import unit_flow
from shared.tensor import DType, SymbolicSpec
from tests.shared.graph import hard_networks
from tests.shared.graph.shipping import eager, same_bits, through


def op(target: str, reads: list[int], writes: list[int]) -> Op:
    return Op(f"aten.{target}.default", tuple(map(Ref, reads)), (), tuple(writes))


def graph_of(units: list[list[Op]], sizes: dict[int, int], inputs: list[int], outputs: list[int]) -> Graph:
    """Tensors of ``sizes`` bytes at batch 1."""
    reads, writes = unit_flow(units, inputs, outputs)
    leaf = Tree("leaf")
    return Graph(
        name="by hand",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        input_tree=Tree("tuple", (Tree("tuple", (leaf,) * len(inputs)), Tree("dict"))),
        output_tree=Tree("tuple", (leaf,) * len(outputs)),
        units=tuple(
            Unit(index, f"unit {index}", "op", tuple(ops), reads[index], writes[index])
            for index, ops in enumerate(units)
        ),
        preamble=(),
        values={
            slot: SymbolicSpec(f"value {slot}", DType.UINT8, ((size, 0),), (0,))
            for slot, size in sizes.items()
        },
        weights={},
        dynamic_batch=True,
        captured_batch=1,
    )


def lives(graph: Graph) -> list[tuple[int, ...]]:
    return [cut.live for cut in graph.cuts]


def test_a_value_read_twice_travels_once_and_as_long_as_it_is_read() -> None:
    graph = graph_of(
        [[op("relu", [0], [1])], [op("exp", [1], [2])], [op("add", [1, 2], [3])], [op("mul", [3, 0], [4])]],
        dict.fromkeys(range(5), 4), inputs=[0], outputs=[4],
    )  # fmt: skip
    assert lives(graph) == [(0,), (0, 1), (0, 1, 2), (0, 3), ()]


def test_of_a_tensor_and_its_views_the_tensor_travels_once() -> None:
    units = [[op("relu", [0], [1]), op("transpose", [1], [2]), op("view", [2], [3])],
             [op("exp", [3], [4])], [op("add", [1, 4], [5])]]  # fmt: skip
    graph = graph_of(units, dict.fromkeys(range(6), 8), inputs=[0], outputs=[5])
    assert lives(graph) == [(0,), (1,), (1, 4), ()]
    assert [item.outputs for item in graph.flow.replay((1,), (0,))] == [(2,), (3,)]


def test_of_a_slice_and_its_tensor_the_smaller_travels() -> None:
    units = [[op("relu", [0], [1]), op("select", [1], [2])], [op("exp", [2], [3])]]
    graph = graph_of(units, {0: 8, 1: 8, 2: 2, 3: 2}, inputs=[0], outputs=[3])
    assert lives(graph) == [(0,), (2,), ()]
    assert graph.flow.replay((2,), (0,)) == ()


def test_an_expanded_view_is_taken_again_from_what_it_expands() -> None:
    units = [[op("relu", [0], [1]), op("expand", [1], [2])], [op("exp", [2], [3])]]
    graph = graph_of(units, {0: 2, 1: 2, 2: 8, 3: 8}, inputs=[0], outputs=[3])
    assert lives(graph) == [(0,), (1,), ()]


def test_parts_of_a_split_travel_whole_or_apart_by_their_bytes() -> None:
    units = [[op("relu", [0], [1]), op("split", [1], [2, 3, 4])],
             [op("exp", [2], [5])], [op("add", [5, 4], [6])], [op("mul", [6, 3], [7])]]  # fmt: skip
    sizes = {0: 12, 1: 12, 2: 4, 3: 4, 4: 4, 5: 4, 6: 4, 7: 4}
    assert lives(graph_of(units, sizes, inputs=[0], outputs=[7])) == [(0,), (1,), (3, 4, 5), (3, 6), ()]


def test_what_the_device_has_computed_does_not_travel() -> None:
    units = [[op("relu", [0], [2])], [op("exp", [2], [3])], [op("add", [3, 1], [4])]]
    graph = graph_of(units, dict.fromkeys(range(5), 4), inputs=[0, 1], outputs=[2, 4, 2])
    assert lives(graph) == [(0, 1), (1, 2), (1, 3), ()]
    assert [graph.output_slots_of(cut) for cut in graph.cuts] == [(2, 4), (4,), (4,), ()]


@functools.cache
def program(name: str) -> Program:
    module, args, kwargs = hard_networks.build(name)
    return load(capture(module, args, kwargs, name=name), mode="exact")


@functools.cache
def judge(name: str) -> tuple[list[Tensor], list[Tensor]]:
    module, args, kwargs = hard_networks.build(name)
    return program(name).graph.flatten(args, kwargs), eager(module, args, kwargs)


@st.composite
def closed_sets(draw: st.DrawFn, graph: Graph) -> list[int]:
    """Any units with all that they need, from a random subset."""
    writer = {slot: unit.index for unit in graph.units for slot in unit.writes}
    needs = {unit.index: {writer[slot] for slot in unit.reads if slot in writer} for unit in graph.units}
    wanted = set(draw(st.sets(st.sampled_from(range(len(graph.units))))))
    for index in reversed(range(len(graph.units))):
        if index in wanted:
            wanted |= needs[index]
    return sorted(wanted)


@pytest.mark.parametrize("name", ["residual", "dense", "split", "cache-step", "early-exit", "photograph"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_closed_set_of_units_gives_the_bits_of_eager(name: str, data: st.DataObject) -> None:
    graph = program(name).graph
    edge = data.draw(closed_sets(graph))
    cut = graph.set_cut(edge)
    assert graph.cut_for_tail_units(graph.tail_units_mask(cut)) == cut
    assert sorted(cut.edge_units + cut.cloud_units) == list(range(len(graph.units)))
    leaves, expected = judge(name)
    assert all(map(same_bits, through(program(name), cut, leaves), expected))
    state = program(name).start(leaves)
    program(name).run(state, cut.edge_units)
    program(name).run(state, cut.cloud_units)
    outputs = program(name).outputs(state)
    assert all(same_bits(outputs[slot], want) for slot, want in zip(graph.outputs, expected, strict=True))
    held = {slot for unit in graph.units for slot in unit.writes if state.slots[slot] is not None}
    assert held <= {slot for output in graph.outputs for slot in (output, graph.flow.root(output))}


def test_every_topological_cut_is_its_own_set_cut() -> None:
    graph = program("split").graph
    for cut in graph.cuts:
        assert graph.set_cut(cut.edge_units) is cut
        assert graph.flow.live(cut.edge_units) == cut.live


def test_sets_that_are_no_cut_are_refused() -> None:
    graph = program("residual").graph
    count = len(graph.units)
    writer = {slot: unit.index for unit in graph.units for slot in unit.writes}
    for edge in itertools.chain.from_iterable(
        itertools.combinations(range(count), size) for size in range(count)
    ):
        closed = all(
            writer.get(slot, edge and edge[0]) in edge for index in edge for slot in graph.units[index].reads
        )
        if closed:
            assert isinstance(graph.set_cut(edge), Cut)
        else:
            with pytest.raises(ProtocolError, match="not a cut"):
                graph.set_cut(edge)
    with pytest.raises(ProtocolError, match="beyond the"):
        graph.cut_for_tail_units((1 << count).to_bytes(2, "little"))
    with pytest.raises(ProtocolError, match="units 0 to"):
        graph.set_cut([count])


def test_sizes_follow_the_batch() -> None:
    assert BatchInt(3, 2).at(5) == 17
    graph = program("dense").graph
    for one, five in zip(graph.live_specs(graph.cuts[3], 1), graph.live_specs(graph.cuts[3], 5), strict=True):
        assert five.nbytes == 5 * one.nbytes
