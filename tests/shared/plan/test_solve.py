"""The solver, against plain loops over the rows."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import PlanError
from shared.graph.ir import Graph
from shared.plan.latency import Conditions, latency_ms
from shared.plan.objective import Latency, Scores
from shared.plan.profile import Profile
from shared.plan.rows import build_rows
from shared.plan.solve import choose, hull, uplink_segments
from tests.shared.plan.builders import CONDITIONS, chain, networks, profile_of

Network = tuple[Graph, Profile, tuple[float, ...]]


def scores_of(costs: list[float]) -> Scores:
    values = np.array(costs)
    return Scores(values, values)


@given(networks(), CONDITIONS)
@settings(max_examples=80, deadline=None)
def test_the_choice_is_the_brute_force_optimum(network: Network, at: Conditions) -> None:
    rows = build_rows(*network)
    choice = choose(Latency().score(rows, at))
    costs = latency_ms(rows, at).tolist()
    best = min(range(len(costs)), key=costs.__getitem__)
    assert costs[choice.row] == pytest.approx(costs[best], rel=1e-11)
    others = [cost for row, cost in enumerate(costs) if row != choice.row]
    if others:
        assert choice.runner_up is not None
        assert choice.runner_up != choice.row
        assert choice.runner_up_cost == pytest.approx(min(others), rel=1e-11)
        assert choice.margin == pytest.approx(min(others) - costs[choice.row], abs=1e-9 * costs[choice.row])
    assert choice.gain == 0


def test_among_equals_the_earliest_row_is_chosen() -> None:
    choice = choose(scores_of([5.0, 3.0 * (1 + 1e-14), 3.0, 3.0]))
    assert (choice.row, choice.runner_up) == (1, 2)


def test_hysteresis_holds_a_row_that_is_nearly_as_good() -> None:
    held = choose(scores_of([100.0, 96.0, 200.0]), current=0, threshold=0.05)
    assert (held.row, held.best, held.runner_up) == (0, 1, 1)
    assert held.margin == -4.0
    assert held.gain == pytest.approx(0.04)
    moved = choose(scores_of([100.0, 94.0, 200.0]), current=0, threshold=0.05)
    assert (moved.row, moved.runner_up, moved.gain) == (1, 0, 0.0)


def test_a_row_that_may_not_be_chosen_any_more_is_not_held() -> None:
    choice = choose(scores_of([np.inf, 94.0]), current=0, threshold=0.5)
    assert (choice.row, choice.runner_up) == (1, None)


def test_no_row_at_all_is_an_error() -> None:
    with pytest.raises(PlanError, match="no candidate"):
        choose(scores_of([np.inf, np.inf]))


def test_choosing_leaves_the_costs_as_they_were() -> None:
    scores = scores_of([2.0, 1.0, 3.0])
    choose(scores)
    assert scores.cost.tolist() == [2.0, 1.0, 3.0]


@given(networks(), CONDITIONS, st.lists(st.floats(1e3, 1e10), min_size=5, max_size=5))
@settings(max_examples=80, deadline=None)
def test_the_segments_name_the_fastest_row_at_every_uplink(
    network: Network, at: Conditions, uplinks: list[float]
) -> None:
    rows = build_rows(*network)
    segments = uplink_segments(rows, at)
    assert segments[0].from_bps == 0
    assert segments[-1].to_bps == np.inf
    for before, after in itertools.pairwise(segments):
        assert before.to_bps == after.from_bps
        assert before.row != after.row
    edges = [segment.from_bps * (1 + 1e-6) for segment in segments[1:]]
    for uplink in uplinks + edges:
        row = next(each.row for each in segments if each.from_bps <= uplink <= each.to_bps)
        costs = latency_ms(rows, replace(at, uplink_bps=uplink))
        assert costs[row] == pytest.approx(costs.min(), rel=1e-6)


@given(networks(), CONDITIONS)
@settings(max_examples=40, deadline=None)
def test_the_hull_holds_the_winner_of_its_slowdowns(network: Network, at: Conditions) -> None:
    rows = build_rows(*network)
    candidates = hull(rows, at, (at.slowdown, 7.0))
    assert candidates == sorted(set(candidates))
    for slowdown in (at.slowdown, 7.0):
        costs = latency_ms(rows, replace(at, slowdown=slowdown))
        assert costs[candidates].min() == pytest.approx(costs.min(), rel=1e-9)


def test_out_of_reach_one_segment_covers_every_uplink() -> None:
    rows = build_rows(*_small())
    segments = uplink_segments(rows, Conditions(1e6, 1.0, reachable=False))
    assert [(each.row, each.from_bps, each.to_bps) for each in segments] == [(rows.local, 0.0, np.inf)]


def _small() -> Network:
    graph = chain([1000, 20, 5])
    return graph, profile_of(graph, [3.0, 4.0]), (1.0, 1.0)
