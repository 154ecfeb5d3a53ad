"""Replicas that come and go with the load, by real Serve on two nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.wire.messages import Ping
from tests.cloud_cluster.cloud_peers import FakeDevice
from tests.ray.ray_peers import FIRST, PATIENCE_S, Work, answered, deploy, gateways, load_feed, served

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(170)]


async def test_replicas_come_when_they_are_wanted_at_either_gateway_and_leave_afterwards(
    serving: Any,
) -> None:
    scale = {
        "min_replicas": 0,
        "max_replicas": 2,
        # Less than a request takes: any load at all asks for both replicas.
        "target_queue_ms": 1e-6,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 3,
    }
    await deploy(serving, {"name": "net", "factory": FIRST, "autoscale": scale}, replicas=2)
    first, second = await gateways(serving)
    work = Work(FIRST)
    async with (
        FakeDevice(first["device_endpoint"]) as one,
        FakeDevice(second["device_endpoint"]) as other,
        load_feed(first["load_endpoint"], second["load_endpoint"]) as seen,
    ):
        card = (await one.hello(net=work.graph.digest)).header
        assert card.models[0].replicas == 0
        await seen(lambda load: load.target == load.ready == 0)
        await one.send(Ping(wanted=[card.models[0].index]))
        await seen(lambda load: load.target == 1 and load.starting == 1 and load.ready == 0)

        # One replica serves the devices of both gateways, each of which has told of the other.
        index, there = await served(one, net=work.graph.digest), await served(other, net=work.graph.digest)
        sent = 0
        scaled = asyncio.create_task(seen(lambda load: load.target == load.ready == 2))
        while not scaled.done():
            await work.send(one, sent, index)
            await work.send(other, sent, there)
            assert {(await answered(one)).request_id, (await answered(other)).request_id} == {sent}
            sent += 1
        await scaled
        assert sent > 0

        # Each gateway has learned of the other, and says so.
        ends = {first["device_endpoint"], second["device_endpoint"]}
        async with asyncio.timeout(PATIENCE_S):
            while set((await one.hello(net=work.graph.digest)).header.gateways) != ends:
                pass

        await seen(lambda load: load.target == load.ready == 0)
