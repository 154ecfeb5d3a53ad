"""The solver's bench: its judge against brute force, its networks, and what it reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from bench import solver
from bench.contract import Bench
from bench.exact import Exact, Judge
from bench.nas import nas_network
from edge_agent.controller import Controller
from shared.codec import Codec
from shared.config import CloudLinkConfig
from shared.graph.ir import Cut, Graph
from shared.plan.latency import Conditions, latency_ms
from shared.plan.profile import Profile
from shared.plan.rows import Rows, build_rows
from shared.tensor import DType
from shared.wire.messages import ModelCard
from tests.shared.plan.builders import CONDITIONS, chain, networks, profile_of

Network = tuple[Graph, Profile, tuple[float, ...]]
MENU = (Codec.FLOAT32, Codec.UINT8_ZSTD, Codec.INT4)


def every_cut(graph: Graph) -> list[Cut]:
    count = len(graph.units)
    chosen = ([unit for unit in range(count) if mask >> unit & 1] for mask in range(2**count))
    return [graph.set_cut(edge) for edge in chosen if graph.flow.is_closed(edge)]


def least_ms(graph: Graph, profile: Profile, cloud: tuple[float, ...], at: Conditions) -> float:
    """Over every closed set of units, and for each tensor that crosses over every codec."""
    plain = build_rows(graph, profile, cloud, (Codec.FLOAT32,), every_cut(graph))
    decoding = min(max(sum(cloud) / sum(profile.unit_ms), 0.1), 2.0)

    def price(slot: int, codec: Codec) -> float:
        cost = profile.payloads[slot][codec]
        coding = cost.encode_ms * at.encode + cost.decode_ms * decoding * at.decode
        return at.batch * (cost.payload_bytes * 8000.0 / at.uplink_bps + coding)

    totals = latency_ms(plain, at).tolist()
    for row in range(len(plain)):
        if plain.remote[row]:
            for slot in plain.cut_of(row).live:
                totals[row] += min(price(slot, codec) for codec in MENU) - price(slot, Codec.FLOAT32)
    return min(totals)


@given(networks(most_units=6), CONDITIONS)
@settings(max_examples=60, deadline=None)
def test_the_judge_is_brute_force_over_all_sets_and_codecs(network: Network, at: Conditions) -> None:
    graph, profile, cloud = network
    exact = Judge(graph, profile, cloud, MENU).best(at)
    assert exact.latency_ms == pytest.approx(least_ms(graph, profile, cloud, at), rel=1e-6)
    assert graph.flow.is_closed(exact.edge_units)


def test_the_judge_stays_on_the_device_where_there_is_no_cloud_or_none_that_helps() -> None:
    graph = chain([1000, 500, 10])
    profile = profile_of(graph, [5.0, 7.0])
    at = Conditions(1e6, 10.0, overhead_ms=1.0, queue_ms=2.0)
    alone = Judge(graph, profile, (0.1, 0.1), MENU).best(replace(at, reachable=False))
    assert alone == (15.0, (0, 1))
    slower = Judge(graph, profile, (50.0, 70.0), MENU).best(at)
    assert slower == (15.0, (0, 1))


@pytest.mark.parametrize("units", [10, 61, 300])
def test_random_networks_are_of_their_size_wide_and_repeatable(units: int) -> None:
    network = nas_network(units, seed=3)
    graph, profile = network.graph, network.profile
    assert len(graph.units) == units == len(profile.unit_ms)
    assert all(ms > 0 for ms in profile.unit_ms)
    for unit in graph.units:
        assert all(slot <= unit.index for slot in unit.reads)
    read = {slot for unit in graph.units for slot in unit.reads}
    assert read == {*range(units)}  # nothing is computed for nobody
    if units > 60:
        assert max(len(cut.live) for cut in graph.cuts) >= 5
    again = nas_network(units, seed=3)
    assert again.graph.units == graph.units
    assert again.profile == profile
    assert nas_network(units, seed=4).profile.unit_ms != profile.unit_ms


def test_a_network_of_cells_has_a_least_size() -> None:
    with pytest.raises(ValueError, match="at least 10 units"):
        nas_network(9, 0)


def test_every_event_that_is_timed_is_a_new_decision() -> None:
    graph = chain([3000, 2000, 100])
    controller = Controller(CloudLinkConfig())
    controller.add_model("net", graph, profile_of(graph, [5.0, 7.0]), 0.0, codecs=MENU)
    controller.on_connected(0.0)
    card = ModelCard(name="net", digest=graph.digest, index=0, unit_ms=[0.5, 0.7], replicas=1)
    controller.on_card(card, 0.0)
    before = len(controller.log)
    samples = solver.resolve_us(controller, "net", 60, seed=0)
    assert len(samples) == 60
    assert min(samples) > 0
    assert len(controller.log) == min(before + solver._WARM_UP + 60, controller.log.maxlen or 0)
    newest = list(controller.log)[-60:]
    assert len({decision.conditions for decision in newest}) == 60
    assert all(decision.conditions.reachable for decision in newest)


def gap_of(rows: Rows, network: Network, at: Conditions) -> solver.Gap:
    (gap,) = solver.gaps(rows, Judge(*network, MENU), [at])
    return gap


def test_the_gap_is_what_the_missing_candidates_cost() -> None:
    graph = chain([40_000, 20_000, 4_000, 10], DType.FLOAT32)
    network = (graph, profile_of(graph, [10.0, 20.0, 90.0]), (1.0, 2.0, 9.0))
    at = Conditions(2e6, 10.0)
    full = build_rows(*network, MENU)
    assert gap_of(full, network, at).share == pytest.approx(0.0, abs=solver.RESOLUTION)
    ends = full.select(full.cut == 0)
    gap = gap_of(ends, network, at)
    assert gap.chosen_ms == pytest.approx(float(latency_ms(ends, at).min()))
    assert gap.exact_ms == pytest.approx(float(latency_ms(full, at).min()))
    assert gap.share > 0.1


def test_a_judge_that_is_worse_than_a_candidate_makes_the_bench_unsound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Wrong(Judge):
        def best(self, conditions: Conditions) -> Exact:
            best = super().best(conditions)
            return best._replace(latency_ms=best.latency_ms * 1.01)

    monkeypatch.setattr(solver, "Judge", Wrong)
    bench = Bench("solver", ["--quick"])
    network = nas_network(20, 0)
    solver.examine(bench, "nas-20", "nas-20.0", network.graph, network.profile, 5, 3)
    assert "missed the optimum" in bench.problems[0]


def test_conditions_are_spread_and_repeatable() -> None:
    drawn = solver.random_conditions(200, 1)
    assert drawn == solver.random_conditions(200, 1)
    uplinks = np.array([at.uplink_bps for at in drawn])
    assert uplinks.min() < 1e6 < 5e7 < uplinks.max()


def test_the_bench_reports_by_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "NAS_UNITS", (20, 1500))
    path = tmp_path / "solver.json"
    arguments = ["--quick", "--network", "senna-pos", "--repeats", "2", "--json", str(path)]
    assert solver.main([*arguments, "--cache-dir", str(tmp_path)]) == 0
    document = json.loads(path.read_text())
    assert document["sound"]
    assert [row["network"] for row in document["rows"]] == ["senna-pos", "nas-20.0"]
    for row in document["rows"]:
        assert row["candidates"] >= row["units"] * 3
        assert sum(row["times_seen_by_us"].values()) == document["config"]["events"]
        assert min(map(float, row["times_seen_by_us"])) <= row["p50_us"] + 0.1
        assert len(row["gaps"]) == document["config"]["conditions"]
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["gap_percent"] <= row["worst_percent"]
    names = [target["name"] for target in document["targets"]]
    assert names[0] == "re-solve p99, slowest of the zoo (senna-pos)"
    assert [target["target"] for target in document["targets"]] == [100.0, 0.0, 0.1]
    (gap,) = [target for target in document["targets"] if target["name"].startswith("worst gap")]
    assert gap["value"] == 0
