"""Plans follow a device that is throttled and a cloud that is busy, through the whole agent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_agent import EdgeAgent
from edge_agent.result import Result, Where
from edge_agent.runner import Runner, Work
from shared.codec import Codec, encode
from shared.graph import Program, State
from shared.plan.profile import Profile
from shared.wire import Message
from shared.wire.messages import Card, Limits, LoadReport, ModelCard, ModelLoad, TailTimings
from shared.wire.messages import Result as ResultHeader
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import agent_config, model
from tests.edge_agent.fake_gateway import FakeGateway, eventually

INPUT = networks.deep()[1][0].numpy()
UNIT_MS = 1.0


class Throttled(Runner):
    """A device on which every unit takes ``UNIT_MS``, until ``factor`` says otherwise."""

    factor = 1.0

    async def profile(self, name: str, *args: Any, **kwargs: Any) -> Profile:
        profile = await super().profile(name, *args, **kwargs)
        return replace(profile, unit_ms=(UNIT_MS,) * len(profile.unit_ms))

    def _run(self, program: Program, state: State, units: Sequence[int], work: Work) -> float:
        super()._run(program, state, units, work)
        ms = len(units) * UNIT_MS * self.factor
        time.sleep(ms / 1000.0)
        return ms


class Cloud:
    """A gateway whose cloud takes ``share`` of the device's time, and ``slowdown`` times that when busy."""

    def __init__(self, gateway: FakeGateway, agent: EdgeAgent, share: float) -> None:
        self.gateway = gateway
        self.agent = agent
        self.slowdown = 1.0
        self.sequence = 0
        graph = agent.graph("deep")
        self.unit_ms = [UNIT_MS * share] * len(graph.units)
        offer = ModelCard(name="deep", digest=graph.digest, index=0, unit_ms=self.unit_ms, replicas=1)
        gateway.card = Card(gateway="fake", software="test", limits=Limits(), models=[offer])
        gateway.on_infer = self.on_infer
        gateway.send(gateway.card)

    def report(self, wait_ms: float = 0.0) -> None:
        """What the load feed says; it goes on saying so, as far as the planner can tell."""
        self.sequence += 1
        load = ModelLoad(
            name="deep", ready=1, starting=0, target=1, queue_ms=wait_ms, wait_ms=wait_ms, slowdown=1.0
        )
        self.agent.pipeline.cloud.on_load(LoadReport(gateway="fake", sequence=self.sequence, models=[load]))

    def on_infer(self, message: Message) -> None:
        tail = self.agent.graph("deep").cuts[message.cut].cloud_units
        ms = sum(self.unit_ms[unit] for unit in tail) * self.slowdown
        asyncio.get_running_loop().call_later(ms / 1000.0, self.answer, message, ms)

    def answer(self, message: Message, ms: float) -> None:
        (slot,) = self.agent.graph("deep").outputs
        header, data = encode(torch.zeros(1, 5), Codec.FLOAT32, slot)
        timings = TailTimings(compute_ms=ms)
        self.gateway.send(ResultHeader(tensors=[header], timings=timings), (bytes(data),), message.request_id)


@contextlib.asynccontextmanager
async def running(cache_dir: Path, share: float) -> AsyncIterator[Cloud]:
    gateway = FakeGateway()
    gateway.card = Card(gateway="fake", software="test", limits=Limits(), models=[])
    async with gateway.serving():
        deep = model("deep", codecs=["float32"], calibration={"samples": 1}, deadline_ms=60_000)
        config = agent_config(cache_dir, gateway.endpoint, deep)
        async with EdgeAgent.from_config(config, runner_factory=Throttled) as agent:
            cloud = Cloud(gateway, agent, share)
            cloud.report()
            await eventually(lambda: agent.decision("deep").conditions.reachable)
            yield cloud


async def request(cloud: Cloud, wait_ms: float = 0.0) -> Result:
    cloud.report(wait_ms)
    return await cloud.agent.infer("deep", INPUT)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


async def test_a_device_throttled_threefold_moves_the_cut_within_five_requests(cache_dir: Path) -> None:
    async with running(cache_dir, share=1.7) as cloud:
        for _ in range(4):
            assert (await request(cloud)).where is Where.DEVICE
        runner = cloud.agent.runner
        assert isinstance(runner, Throttled)
        runner.factor = 3.0
        places = [(await request(cloud)).where for _ in range(5)]
        assert places[0] is Where.DEVICE  # nothing can be known yet
        last = await request(cloud)
        assert last.where is not Where.DEVICE
        assert last.decision["reason"].startswith("device 1.00 -> ")
        error = cloud.agent.prediction_error("deep")
        assert error is not None
        assert np.isfinite(error)


async def test_a_cloud_that_computes_slower_moves_the_cut_within_five_requests(cache_dir: Path) -> None:
    async with running(cache_dir, share=0.3) as cloud:
        for _ in range(4):
            assert (await request(cloud)).where is not Where.DEVICE
        cloud.slowdown = 6.0
        for _ in range(5):
            await request(cloud)
        assert (await request(cloud)).where is Where.DEVICE


async def test_a_queue_in_the_load_feed_moves_the_cut_at_once(cache_dir: Path) -> None:
    async with running(cache_dir, share=0.3) as cloud:
        assert (await request(cloud)).where is not Where.DEVICE
        busy = await request(cloud, wait_ms=1000.0)
        assert busy.where is Where.DEVICE
        assert "queue wait" in busy.decision["reason"]
        assert (await request(cloud)).where is not Where.DEVICE
