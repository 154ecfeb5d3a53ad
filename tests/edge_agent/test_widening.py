"""Cuts that are no prefix of the network: found when a card comes, and run on both sides."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud_cluster.in_process import InProcessCloud
from edge_agent import EdgeAgent
from edge_agent.result import Where
from edge_agent.runner import Runner
from shared.codec import Codec
from shared.graph import Cut, Graph
from shared.plan.profile import Profile
from shared.wire import SET_CUT, Message, MessageType
from shared.wire.messages import Card, Limits, ModelCard
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import agent_config, cloud_config, eager, model
from tests.edge_agent.fake_gateway import FakeGateway, eventually


def wide_cuts_of(graph: Graph) -> list[Cut]:
    """All of them: sets of units that hold what they need and are no prefix."""
    units = range(len(graph.units))
    return [
        graph.set_cut(edge)
        for size in range(1, len(units))
        for edge in itertools.combinations(units, size)
        if edge != tuple(range(size)) and graph.flow.is_closed(edge)
    ]


async def test_every_wide_cut_gives_the_whole_networks_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.widening.widened_cuts", lambda graph, *rest: wide_cuts_of(graph))
    samples = {"calibration": {"samples": 2}}
    async with InProcessCloud(cloud_config(tmp_path, model("towers"))) as cloud:
        config = agent_config(tmp_path, cloud.device_endpoint, model("towers", **samples))
        async with EdgeAgent.from_config(config) as agent:
            graph, controller = agent.graph("towers"), agent.pipeline.controller
            cuts = wide_cuts_of(graph)
            assert len(cuts) > 3
            await eventually(lambda: set(cuts) < set(controller.rows("towers").cuts))
            for cut, batch in itertools.product(cuts, (1, 3)):
                x = torch.randn(batch, 12)
                want = eager(networks.towers, x)
                agent.pin("towers", cut)
                result = await agent.infer("towers", x)
                for got, expected in zip(result.outputs, want, strict=True):
                    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)
                assert (result.where, result.cut_index, result.cut) == (Where.SPLIT, -1, cut.name)
                assert result.fallback is None
                assert result.uplink_bytes == sum(spec.nbytes for spec in graph.live_specs(cut, batch))


class Offering:
    """A gateway whose cloud computes the left tower for nothing and the right one hardly at all."""

    def __init__(self, gateway: FakeGateway, graph: Graph) -> None:
        slow = {unit.index for unit in graph.units if unit.name.startswith("right")}
        self.right = slow
        self.unit_ms = [1000.0 if index in slow else 1e-6 for index in range(len(graph.units))]
        self.card = Card(
            gateway="fake",
            software="test",
            limits=Limits(),
            models=[ModelCard(name="towers", digest=graph.digest, index=0, unit_ms=self.unit_ms, replicas=1)],
        )
        gateway.card = self.card
        gateway.send(self.card)


@pytest.mark.parametrize("codecs", [None, ["float32", "float32+zstd"]])
async def test_a_card_starts_the_search_and_what_it_finds_is_judged_and_used(
    tmp_path: Path, codecs: list[str] | None
) -> None:
    gateway = FakeGateway()
    gateway.card = Card(gateway="fake", software="test", limits=Limits(), models=[])
    towers = model("towers", codecs=codecs, calibration={"samples": 4})
    async with gateway.serving():
        config = agent_config(tmp_path, gateway.endpoint, towers)
        async with EdgeAgent.from_config(config) as agent:
            graph = agent.graph("towers")
            offering = Offering(gateway, graph)

            def wide() -> list[Cut]:
                return [cut for cut in agent.pipeline.controller.rows("towers").cuts if cut.index < 0]

            await eventually(wide)
            cut = next(cut for cut in wide() if offering.right <= set(cut.edge_units))
            assert not any(graph.units[unit].name.startswith("left") for unit in cut.edge_units)

            def judged() -> bool:
                candidates = agent.explain("towers").candidates
                at = {each.codec: each.agreement for each in candidates if each.cut_name == cut.name}
                return at.keys() > {"float32", "int4+zstd"} and None not in at.values()

            if codecs is None:
                await eventually(judged)
            await agent.caught_up()
            agent.pin("towers", cut, Codec.FLOAT32_ZSTD)
            sent: list[Message] = []
            gateway.on_infer = sent.append
            result = await agent.infer("towers", torch.randn(1, 12), deadline_ms=2000)
            assert (result.where, result.cut_index) == (Where.DEVICE_FALLBACK, -1)  # nobody answered
            (infer,) = sent
            assert infer.type is MessageType.INFER
            assert (infer.cut, infer.header.tail_units) == (SET_CUT, graph.tail_units_mask(cut))


async def test_a_network_without_branches_has_none_and_a_pinned_cut_leaves_none_to_look_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []

    def search(graph: Graph, *rest: object) -> tuple[Cut, ...]:
        searched.append(graph.name)
        return ()

    monkeypatch.setattr("edge_agent.widening.widened_cuts", search)
    samples = {"calibration": {"samples": 1}}
    async with InProcessCloud(cloud_config(tmp_path, model("towers"), model("photos"))) as cloud:
        models = [model("towers", cut=2, **samples), model("photos", **samples)]
        config = agent_config(tmp_path, cloud.device_endpoint, *models)
        async with EdgeAgent.from_config(config):
            await eventually(lambda: searched)
    assert searched == ["photos"]


class Slow(Runner):
    """By its profile a device on which every unit takes 20 ms."""

    async def profile(self, name: str, *args: Any, **kwargs: Any) -> Profile:
        profile = await super().profile(name, *args, **kwargs)
        return replace(profile, unit_ms=(20.0,) * len(profile.unit_ms))


async def test_a_wide_cut_is_chosen_where_it_is_best_and_gives_the_right_answer(tmp_path: Path) -> None:
    twins = model("twins", codecs=["float32"], input_never_leaves=True, calibration={"samples": 1})
    images = torch.randn(2, 1, 3, 64, 64)
    async with InProcessCloud(cloud_config(tmp_path, model("twins"))) as cloud:
        config = agent_config(tmp_path, cloud.device_endpoint, twins)
        async with EdgeAgent.from_config(config, runner_factory=Slow) as agent:
            await eventually(lambda: agent.decision("twins").cut.index < 0)
            result = await agent.infer("twins", *images)
            names = [unit.name for unit in agent.graph("twins").units]
            edge = {names[unit] for unit in agent.decision("twins").cut.edge_units}
    assert edge == {"left_small conv2d", "right_small conv2d"}
    assert (result.where, result.cut_index, result.fallback) == (Where.SPLIT, -1, None)
    assert result.uplink_bytes == 2 * 4 * 8 * 8 * 4
    want = eager(networks.twins, *images).numpy()
    np.testing.assert_allclose(result.outputs, want, rtol=1e-5, atol=1e-6)
