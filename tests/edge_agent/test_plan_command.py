"""The plan command: against the real cloud in this process, and alone."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cloud_cluster.in_process import InProcessCloud
from edge_agent.cli import app
from edge_agent.plan_command import Planned, WhatIf, make_plans, plan_models
from edge_agent.plan_map import check_map_file, draw_map, winner_grid
from edge_agent.plan_table import render
from edge_agent.scout import visit_gateway
from shared.config import AgentConfig
from shared.errors import ConfigError, UnknownModelError
from shared.graph.capture import capture
from shared.plan.constraints import Constraints
from shared.plan.explain import explain, pose
from shared.plan.latency import Conditions
from shared.plan.objective import Latency
from shared.plan.rows import build_rows
from shared.plan.stages import Stage
from shared.wire.messages import Card, Limits, ModelCard, ModelOffer
from tests.edge_agent import edge_networks
from tests.edge_agent.agents import NOWHERE, agent_config, cloud_config, model
from tests.edge_agent.fake_gateway import FakeGateway
from tests.shared.plan.builders import chain, profile_of

FEW = {"calibration": {"samples": 2}}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def alone(cache_dir: Path) -> AgentConfig:
    return agent_config(cache_dir, NOWHERE, model("photos", **FEW), model("words", **FEW))


async def plan_of(config: AgentConfig, asked: WhatIf = WhatIf()) -> Planned:  # noqa: B008 - frozen
    (planned,) = await make_plans(config, config.models[:1], asked)
    return planned


async def test_a_reachable_gateway_gives_unit_times_link_and_load(cache_dir: Path) -> None:
    async with InProcessCloud(cloud_config(cache_dir, model("photos"))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, model("photos", **FEW))
        planned = await plan_of(config)
    facts = planned.facts
    assert facts["cloud"].startswith("measured: ")
    assert "1 replica behind" in facts["cloud"]
    assert re.search(
        r"uplink [\d.e+]+ Mbps \(measured now\), round trip [\d.]+ ms \(measured now\)", facts["link"]
    )
    assert "wait 0 ms (measured now)" in facts["load"]


async def test_the_plan_computes_with_the_unit_times_of_the_card(cache_dir: Path) -> None:
    module, args = edge_networks.photos()
    graph = capture(module, args, name="photos").graph
    async with FakeGateway().serving() as gateway:
        card = ModelCard(
            name="photos", digest=graph.digest, index=0, unit_ms=[3.0] * len(graph.units), replicas=2
        )
        gateway.card = Card(gateway="fake", software="test", limits=Limits(), models=[card])
        planned = await plan_of(agent_config(cache_dir, gateway.endpoint, model("photos", **FEW)))
    whole_ms = 3.0 * len(graph.units)
    assert f"measured: {whole_ms:.1f} ms for the whole network, 2 replicas" in planned.facts["cloud"]
    for candidate in planned.explanation.candidates:
        tail = len(graph.units) - candidate.cut
        assert candidate.stages[Stage.CLOUD] == pytest.approx(3.0 * tail)


async def test_what_is_given_replaces_what_is_measured(cache_dir: Path) -> None:
    async with InProcessCloud(cloud_config(cache_dir, model("photos"))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, model("photos", **FEW))
        planned = await plan_of(config, WhatIf(uplink_mbps=3.0, rtt_ms=40.0, wait_ms=7.0, slowdown=2.0))
    at = planned.explanation.conditions
    assert (at.uplink_bps, at.rtt_ms, at.wait_ms, at.slowdown) == (3e6, 40.0, 7.0, 2.0)
    assert "uplink 3 Mbps (given), round trip 40 ms (given)" in planned.facts["link"]
    assert planned.facts["load"] == "wait 7 ms (given), slowdown 2 (given)"


async def test_another_network_under_the_name_is_said_and_a_cloud_assumed(cache_dir: Path) -> None:
    served = model("photos", "other_photos")
    async with InProcessCloud(cloud_config(cache_dir, served)) as cloud:
        planned = await plan_of(agent_config(cache_dir, cloud.device_endpoint, model("photos", **FEW)))
    assert planned.facts["cloud"].startswith("assumed: 10 times as fast as this device, for ")
    assert "sha256:" in planned.facts["cloud"]


async def test_without_a_gateway_the_cloud_is_assumed_and_said_to_be(alone: AgentConfig) -> None:
    planned = await plan_of(alone)
    assert planned.facts["cloud"] == (
        f"assumed: 10 times as fast as this device, for nothing answers at {NOWHERE}"
    )
    assert "(assumed)" in planned.facts["link"]
    assert planned.facts["calibration"].startswith("synthetic")
    whole = planned.explanation.candidates[-1].stages[Stage.DEVICE]
    assert planned.explanation.candidates[0].stages[Stage.CLOUD] == pytest.approx(whole / 10)


async def test_a_cloud_factor_asks_no_gateway(cache_dir: Path) -> None:
    async with FakeGateway().serving() as gateway:
        config = agent_config(cache_dir, gateway.endpoint, model("photos", **FEW))
        planned = await plan_of(config, WhatIf(cloud_factor=4.0))
        assert gateway.got == []
    assert planned.facts["cloud"] == "assumed: 4 times as fast as this device (--cloud-factor)"
    whole = planned.explanation.candidates[-1].stages[Stage.DEVICE]
    assert planned.explanation.candidates[0].stages[Stage.CLOUD] == pytest.approx(whole / 4)


async def test_a_gateway_that_says_nothing_does_not_hold_the_visit_up() -> None:
    gateway = FakeGateway()
    gateway.alive = False
    async with gateway.serving():
        config = agent_config(Path(), gateway.endpoint, model("photos")).cloud
        visit = await visit_gateway(config, "edge", [ModelOffer(name="net", digest="sha256:1")], 0.3)
    assert visit.card is None
    assert visit.problem
    assert not visit.uplink_measured
    assert not visit.rtt_measured
    assert visit.model("net") is None


async def test_constraints_and_codecs_of_the_configuration_are_in_the_plan(cache_dir: Path) -> None:
    restricted = model("photos", codecs=["float32", "uint8"], input_never_leaves=True, **FEW)
    planned = await plan_of(agent_config(cache_dir, NOWHERE, restricted))
    reasons = planned.explanation.exclusions
    assert reasons.keys() == {"codecs", "input_never_leaves", "not judged yet"}
    allowed = {each.codec for each in planned.explanation.candidates if not each.excluded}
    assert allowed <= {"float32", "uint8", ""}


def test_the_text_names_winner_runner_up_exclusions_and_switches(alone: AgentConfig) -> None:
    text = plan_models(alone, ["photos"], WhatIf(uplink_mbps=1e4, rtt_ms=0.0, cloud_factor=1e6))
    for word in ("photos: least latency", "winner ", "runner-up ", "excluded ", "switches ", "<- winner"):
        assert word in text
    assert "words" not in text
    everything = plan_models(alone, ["photos"], WhatIf(cloud_factor=10.0), show_all=True)
    assert len(everything.splitlines()) > len(text.splitlines())


def test_json_is_all_that_is_printed(alone: AgentConfig) -> None:
    document = json.loads(plan_models(alone, [], WhatIf(cloud_factor=10.0), as_json=True))
    assert [each["model"] for each in document["models"]] == ["photos", "words"]
    for each in document["models"]:
        winner = each["candidates"][each["winner"]]
        assert winner["cost"] == min(row["cost"] for row in each["candidates"] if row["cost"] is not None)
        assert each["sources"]["cloud"].startswith("assumed: 10 times")


def test_an_objective_is_a_name_or_a_mapping(alone: AgentConfig) -> None:
    text = plan_models(alone, ["photos"], WhatIf(cloud_factor=10.0, objective="energy"))
    assert "photos: least energy" in text
    asked = WhatIf(cloud_factor=10.0, objective="{minimise: energy, deadline_ms: 5000}")
    assert "least energy within 5000 ms" in plan_models(alone, ["photos"], asked)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (WhatIf(uplink_mbps=0.0), "--uplink-mbps must be above 0"),
        (WhatIf(rtt_ms=-1.0), "--rtt-ms cannot be negative"),
        (WhatIf(cloud_factor=-2.0), "--cloud-factor must be above 0"),
        (WhatIf(slowdown=float("nan")), "--slowdown must be above 0"),
        (WhatIf(objective="speed"), "--objective: .*speed"),
        (WhatIf(objective="{minimise: ["), "--objective: "),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    alone: AgentConfig, asked: WhatIf, words: str
) -> None:
    broken = alone.model_copy(update={"cache_dir": Path("/dev/null/none")})
    with pytest.raises(ConfigError, match=words):
        plan_models(broken, ["photos"], asked)


def test_an_unknown_network_names_those_there_are(alone: AgentConfig) -> None:
    with pytest.raises(UnknownModelError, match="photos, words"):
        plan_models(alone, ["fotos"], WhatIf())


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_map_is_drawn(alone: AgentConfig, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"map{suffix}"
    text = plan_models(alone, ["photos"], WhatIf(cloud_factor=10.0), map_file=path, map_load="slowdown")
    assert str(path) in text
    assert path.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")


def test_a_map_is_of_one_network(alone: AgentConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model"):
        plan_models(alone, [], WhatIf(), map_file=tmp_path / "map.svg")


def test_a_map_that_cannot_be_drawn_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"not map\.txt"):
        check_map_file(tmp_path / "map.txt")
    with pytest.raises(ConfigError, match="no directory"):
        check_map_file(tmp_path / "none" / "map.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"suture\[demo\]"):
        check_map_file(tmp_path / "map.svg")


def shrinking_chain() -> tuple[Planned, Conditions]:
    graph = chain([60_000, 40_000, 8_000, 500, 10])
    rows = build_rows(graph, profile_of(graph, [20.0, 40.0, 60.0, 30.0]), (2.0, 4.0, 6.0, 3.0))
    at = Conditions(5e6, 10.0)
    problem, _ = pose(rows, graph, Latency(), Constraints())
    return Planned(explain(rows, graph, at), problem, {"cloud": "measured"}, 0), at


def test_the_map_holds_the_winner_of_each_place_on_it() -> None:
    planned, at = shrinking_chain()
    uplinks, waits = np.array([0.3, 3.0, 30.0]), np.array([0.0, 40.0, 400.0])
    grid = winner_grid(planned.problem, at, uplinks, waits)
    assert grid.shape == (3, 3)
    for line, wait in zip(grid, waits, strict=True):
        for row, uplink in zip(line, uplinks, strict=True):
            there = replace(at, uplink_bps=uplink * 1e6, wait_ms=wait)
            assert row == planned.problem.winner(there)
    assert len(set(grid.ravel().tolist())) >= 3
    local = next(each.row for each in planned.explanation.candidates if each.place == "device")
    assert (grid[2] == local).all()


def test_a_map_names_its_winners(tmp_path: Path) -> None:
    planned, _ = shrinking_chain()
    path = tmp_path / "map.svg"
    draw_map(planned.problem, planned.explanation, path)
    drawn = path.read_text()
    assert "net: least latency" in drawn
    assert "all on the device" in drawn
    assert "split after" in drawn
    taken = tmp_path / "directory.svg"
    taken.mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        draw_map(planned.problem, planned.explanation, taken)


def test_the_table_says_how_many_inputs_are_missing() -> None:
    planned, _ = shrinking_chain()
    explanation = planned.explanation
    assert "too few inputs" not in render(explanation, (), show_all=False)
    first, second, *others = explanation.candidates
    lacking = replace(first, excluded="min_agreement: few", inputs_needed=1800)
    also = replace(second, excluded="min_agreement: few", inputs_needed=130)
    text = render(replace(explanation, candidates=(lacking, also, *others)), (), show_all=False)
    assert "2 of them on too few inputs: 130 might do for the first" in text


def test_the_table_has_a_column_for_every_stage_and_no_number_is_cut_off() -> None:
    planned, _ = shrinking_chain()
    text = render(planned.explanation, planned.facts.values(), show_all=True)
    (heading,) = [line for line in text.splitlines() if "kB up" in line]
    for name in (
        "cut",
        "codec",
        "device",
        "encode",
        "uplink",
        "net",
        "wait",
        "decode",
        "cloud",
        "back",
        "ms",
    ):
        assert name in heading.split()
    assert "…" not in heading
    body = [line for line in text.splitlines() if line.startswith(" ") and "unit" in line]
    assert len(body) >= len(planned.explanation.candidates) - 2


def test_the_command_takes_its_options(tmp_path: Path, cache_dir: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(
        f"cache_dir: {cache_dir}\nthreads: 1\nprofile_repeats: 3\nmodels: [{{name: photos, "
        "factory: 'tests.edge_agent.edge_networks:photos', calibration: {samples: 2}}]\n"
    )
    arguments = ["plan", "--config", str(path), "--uplink-mbps", "8", "--cloud-factor", "5", "--json"]
    run = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert run.exit_code == 0
    (plan,) = json.loads(run.stdout)["models"]
    assert plan["conditions"]["uplink_bps"] == 8e6
