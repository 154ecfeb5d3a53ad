"""What is computed together equals what is computed alone, whatever the mix of cuts and batches."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_cluster.replica_request import Done
from shared.config import ModelSource
from shared.errors import InputMismatchError
from shared.graph import Cut, Graph
from tests.cloud_cluster.batch_peers import (
    Comparing,
    EarlyAndLate,
    Recurrent,
    Served,
    TimeMajor,
    from_module,
    from_source,
    from_zoo,
    run,
)

SMALL = ("mnist", "senna-pos")
LARGE = ("mobilenetv2", "vit-tiny", "bert-encoder")

Mix = list[tuple[float, int]]
"""For each request how far along the network it is cut, and its batch."""

mixes = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 3)), min_size=1, max_size=6)
no_deadline = settings(deadline=None, suppress_health_check=list(HealthCheck))


def check(net: Served, requests: Sequence[tuple[Cut, int]]) -> list[Done]:
    """Run all together and compare each with itself alone; unbatched bit for bit."""
    messages = [net.message(cut, batch, seed) for seed, (cut, batch) in enumerate(requests)]
    answers = run(net, messages)
    for seed, ((cut, batch), done) in enumerate(zip(requests, answers, strict=True)):
        got, alone = net.tensors(done, cut, batch), net.alone(cut, batch, seed)
        assert len(got) == len(alone)
        for tensor, expected in zip(got, alone, strict=True):
            if done.batch_requests == 1:
                assert torch.equal(tensor, expected)
            else:
                largest = float(expected.abs().max())
                assert float((tensor - expected).abs().max()) <= 1e-5 * largest
    return answers


def cuts(net: Served, mix: Mix) -> list[tuple[Cut, int]]:
    last = len(net.graph.cuts) - 1
    return [(net.graph.cuts[round(where * last)], batch) for where, batch in mix]


@pytest.mark.parametrize("name", SMALL)
@given(mix=mixes)
@settings(no_deadline, max_examples=25)
def test_any_mix_on_small_networks(name: str, mix: Mix) -> None:
    net = from_zoo(name)
    check(net, cuts(net, mix))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
@given(mix=mixes)
@settings(no_deadline, max_examples=4)
def test_any_mix_on_a_convolutional_network_and_transformers(name: str, mix: Mix) -> None:
    net = from_zoo(name)
    check(net, cuts(net, mix))


@pytest.mark.parametrize("name", SMALL)
def test_requests_at_every_cut_run_together(name: str) -> None:
    net = from_zoo(name)
    assert all(net.executor.place_from(cut.index) == cut.index for cut in net.graph.cuts)
    requests = [(cut, 1) for cut in net.graph.cuts[:-1]]
    answers = check(net, requests)
    assert {done.batch_requests for done in answers} == {len(requests)}


def closed(graph: Graph, wanted: set[int]) -> Cut:
    """The cut whose device runs ``wanted``, as far as that is possible."""
    edge: list[int] = []
    have = set(graph.inputs)
    for unit in graph.units:
        if unit.index in wanted and have.issuperset(unit.reads):
            edge.append(unit.index)
            have.update(slot for op in unit.ops for slot in op.written)
    return graph.set_cut(edge)


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 9)), st.integers(1, 2)), min_size=2, max_size=5),
)
@settings(no_deadline, max_examples=40)
def test_outputs_computed_before_joining_and_cuts_that_are_no_prefix(
    mix: list[tuple[set[int], int]],
) -> None:
    net = from_module(EarlyAndLate, 3, 8, 8)
    check(net, [(closed(net.graph, wanted), batch) for wanted, batch in mix])


def test_a_cut_that_is_no_prefix_joins_behind_its_last_unit() -> None:
    net = from_module(EarlyAndLate, 3, 8, 8)
    graph = net.graph
    sets = {closed(graph, {0, index}).edge_units: closed(graph, {0, index}) for index in range(1, 5)}
    spread = next(cut for cut in sets.values() if cut.index < 0)
    job = net.executor.accept(net.message(spread))
    assert job.cut == spread.edge_units[-1] + 1
    assert list(job.lead) == [unit for unit in spread.cloud_units if unit < job.cut]
    answers = check(net, [(spread, 1), (graph.cuts[job.cut], 1)])
    assert {done.batch_requests for done in answers} == {2}


def test_a_network_that_compares_samples_joins_only_behind_that() -> None:
    net = from_module(Comparing, 6)
    comparing = next(unit.index for unit in net.graph.units if "mean" in unit.name)
    last = max(unit.index for unit in net.graph.units if {"mean", "sub"} & set(unit.name.split()))
    places = [net.executor.place_from(index) for index in range(len(net.graph.units))]
    assert all(place > comparing for place in places)
    assert places[last] == last + 1
    check(net, [(cut, batch) for cut in net.graph.cuts for batch in (1, 2)])
    answers = check(net, [(net.graph.cuts[last + 1], 1)] * 2)
    assert {done.batch_requests for done in answers} == {2}


def test_interleaved_samples_are_not_joined_where_they_are() -> None:
    net = from_module(TimeMajor, 4, 6)
    graph = net.graph
    interleaved = [
        cut.index for cut in graph.cuts[:-1] if any(graph.values[slot].dims[0][0] == 4 for slot in cut.live)
    ]
    assert interleaved
    assert all(net.executor.place_from(index) != index for index in interleaved)
    assert net.executor.place_from(0) == 0
    check(net, [(cut, batch) for cut in graph.cuts for batch in (1, 2)])


def test_the_batch_need_not_be_the_first_dimension() -> None:
    net = from_module(Recurrent, 5, 6)
    graph = net.graph
    second = [
        cut.index
        for cut in graph.cuts[:-1]
        if any(graph.values[slot].dims[0][0] == 0 and graph.values[slot].dims[1][0] for slot in cut.live)
    ]
    assert second
    assert all(net.executor.place_from(index) == index for index in second)
    answers = check(net, [(cut, 1) for cut in graph.cuts[:-1]])
    assert answers[-1].batch_requests > 1


def test_a_wrong_value_in_a_batch_is_an_error_of_that_request_only() -> None:
    net = from_source(ModelSource(name="tagger", factory="tests.cloud_cluster.cloud_peers:tiny_tagger"))
    cut = net.graph.cuts[0]
    good, bad = net.message(cut, 1, 0), net.message(cut, 1, 1)
    assert [done.batch_requests for done in run(net, [good, bad])] == [2, 2]
    header = bad.header.tensors[0]
    spoiled = torch.full(header.shape, 10**9, dtype=torch.int64).numpy().tobytes()
    bad = type(bad)(bad.frame0, bad.header, (memoryview(spoiled), *bad.payloads[1:]))
    first, second, third = run(net, [good, bad, net.message(cut, 1, 2)])
    assert isinstance(second.outcome, InputMismatchError)
    assert torch.equal(net.tensors(first, cut, 1)[0], net.alone(cut, 1, 0)[0])
    assert torch.equal(net.tensors(third, cut, 1)[0], net.alone(cut, 1, 2)[0])
