"""Deployed anew under load: no request is lost, and only what has changed starts anew, by real Serve."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edge_agent.result import Where
from tests.cloud_cluster.cloud_peers import FakeDevice
from tests.ray.ray_peers import FIRST, PATIENCE_S, SECOND, Device, Work, answered, deploy, gateways, served
from tests.ray.test_serve import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(170)]


async def running(serving: Any, deployment: str, count: int) -> None:
    """Until a deployment has so many replicas, and none that starts or stops."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status = await asyncio.to_thread(serving.status)
            states = status.applications["default"].deployments[deployment].replica_states
            if {state: number for state, number in states.items() if number} == {"RUNNING": count}:
                return
            await asyncio.sleep(0.1)


async def test_a_new_version_is_served_beside_the_old_and_no_request_is_lost(
    serving: Any, tmp_path: Path
) -> None:
    old = {"name": "net", "factory": FIRST}
    new = {"name": "net", "factory": SECOND, "version": "2"}
    await deploy(serving, dict(old))
    (before,) = await gateways(serving)
    async with Device(FIRST, tmp_path, before["device_endpoint"]) as device:
        await device.more(Where.CLOUD)
        await deploy(serving, dict(old), dict(new))
        await device.more(Where.CLOUD)
        work = Work(SECOND)
        async with FakeDevice(before["device_endpoint"]) as other:
            index = await served(other, net=work.graph.digest)
            await work.send(other, 1, index)
            assert (await answered(other)).request_id == 1
            await device.more(Where.CLOUD)

            await deploy(serving, dict(new))
            # What the agent holds is served no more.
            await device.more(Where.DEVICE, Where.DEVICE_FALLBACK)
            await work.send(other, 2, index)
            assert (await answered(other)).request_id == 2
    device.check()
    (after,) = await gateways(serving)
    # The same gateway, at its place, through both changes.
    assert {**after, "models": None} == {**before, "models": None}


async def test_other_weights_limits_replicas_and_a_new_gateway_lose_no_request(
    serving: Any, tmp_path: Path
) -> None:
    device_port, replica_port, load_port = free_ports(3)
    gateway = {"device_port": device_port, "replica_port": replica_port, "load_port": load_port}
    net = {"name": "net", "factory": FIRST}
    await deploy(serving, dict(net), **gateway)
    (first,) = await gateways(serving)
    endpoint = first["device_endpoint"]

    async with Device(FIRST, tmp_path, endpoint) as old:
        await old.more(Where.CLOUD)
        # Other weights under the same name: the old ones are served for as long as a device holds them.
        net["factory"] = SECOND
        deploying = asyncio.create_task(deploy(serving, dict(net), **gateway))
        async with Device(SECOND, tmp_path, endpoint) as new:
            await new.more(Where.CLOUD)
            await old.more(Where.CLOUD)
            # The new replica was there before the old one was told to leave, and that one has not left.
            assert {result.where for result in old.results} <= {Where.CLOUD, old.results[0].where}
    await deploying
    await running(serving, "Tail-net", 1)
    old.check()
    new.check()

    async with Device(SECOND, tmp_path, endpoint) as device:
        await device.more(Where.CLOUD)
        start = len(device.results)
        await deploy(serving, {**net, "replicas": 2, "credits": 3}, **gateway, max_in_flight=9)
        await running(serving, "Tail-net", 2)
        await device.more(Where.CLOUD)
        assert {result.where for result in device.results[start:]} == {Where.CLOUD}
        async with FakeDevice(endpoint) as other:
            assert (await other.hello()).header.limits.max_in_flight == 9
        (same,) = await gateways(serving)
        assert same["gateway"] == first["gateway"]

        # What a gateway cannot change as it runs starts it anew, at its place; its devices go on alone.
        await deploy(serving, {**net, "replicas": 2, "credits": 3}, **gateway, bind_retry_s=20)
        await device.more(Where.CLOUD)
        (last,) = await gateways(serving)
        assert last["gateway"] != first["gateway"]
        assert last["device_endpoint"] == endpoint
    device.check()
