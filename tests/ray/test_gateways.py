"""Gateways that hang, die or lose their node, and gateways with keys, by real Serve on several nodes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edge_agent.listener import LinkState
from edge_agent.result import Where
from tests.cloud_cluster.cloud_peers import until
from tests.ray.ray_peers import FIRST, Device, deploy, gateways, load_feed
from tests.security.keyring import Keyring

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(170)]

SEEN_MS = 10_000
"""A third of a request's time, and far more than it takes to see a loss: 3 heartbeats of 100 ms."""


class Place(NamedTuple):
    """A process that a gateway runs in."""

    pid: int
    node: str
    port: int


async def places(endpoints: set[str]) -> dict[str, Place]:
    """By device endpoint."""
    import ray

    def whereabouts(_: Any) -> tuple[int, str]:
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def ask() -> list[tuple[int, str]]:
        names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
        actors = [ray.get_actor(name, namespace="serve") for name in names if "#Gateway#" in name]
        return ray.get([actor.__ray_call__.remote(whereabouts) for actor in actors])

    found = {}
    for pid, node in await asyncio.to_thread(ask):
        ports = listening(pid)
        found |= {
            endpoint: Place(pid, node, int(endpoint.rpartition(":")[2]))
            for endpoint in endpoints
            if int(endpoint.rpartition(":")[2]) in ports
        }
    return found


def listening(pid: int) -> set[int]:
    """The TCP ports on which a process of this machine listens."""
    sockets = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        name = os.readlink(file)
        if name.startswith("socket:["):
            sockets.add(name.removeprefix("socket:[").removesuffix("]"))
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and inode in sockets:
            ports.add(int(local.rpartition(":")[2], 16))
    return ports


async def test_devices_of_a_gateway_that_hangs_and_of_one_that_loses_its_node_move_to_another(
    serving: Any, nodes: Any, tmp_path: Path
) -> None:
    doomed = nodes.add_node(num_cpus=1)
    await deploy(serving, {"name": "net", "factory": FIRST, "replicas": 2}, replicas=3)
    reports = {report["device_endpoint"]: report for report in await gateways(serving)}
    where = await places(set(reports))
    assert len({place.node for place in where.values()}) == 3
    (on_doomed,) = (endpoint for endpoint, place in where.items() if place.node == doomed.node_id)
    feeds = [report["load_endpoint"] for report in reports.values()]
    async with load_feed(*feeds) as seen:
        await seen(lambda load: load.ready == 2)

    async with Device(FIRST, tmp_path, on_doomed) as device:
        agent = device.agent
        await device.more(Where.CLOUD)
        assert on_doomed in agent.link_reason
        # It learns from its gateway where the others are.
        link = agent.pipeline.cloud.link
        assert link is not None
        await until(lambda: link.moves_in_ms() is not None)

        await asyncio.to_thread(nodes.remove_node, doomed, allow_graceful=False)
        await until(lambda: agent.link_state is LinkState.ONLINE and on_doomed not in agent.link_reason)
        await device.more(Where.CLOUD)
        (second,) = (endpoint for endpoint in reports if endpoint in agent.link_reason)

        # It hangs, but its connections stay open: only heartbeats tell.
        os.kill(where[second].pid, signal.SIGSTOP)
        try:
            await until(lambda: agent.link_state is LinkState.ONLINE and second not in agent.link_reason)
            await device.more(Where.CLOUD)
        finally:
            os.kill(where[second].pid, signal.SIGKILL)
    device.check()
    assert max(result.latency_ms for result in device.results) < SEEN_MS


async def test_a_gateway_with_keys_serves_the_devices_that_it_lists_and_nobody_else(
    serving: Any, tmp_path: Path
) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.list("listed")
    ring.new("stranger")
    await deploy(serving, {"name": "net", "factory": FIRST}, keys=ring.of_gateway.model_dump(mode="json"))
    (report,) = await gateways(serving)
    endpoint = report["device_endpoint"]

    def keys(name: str) -> dict[str, Any]:
        return ring.of_device(name).model_dump(mode="json")

    async with Device(FIRST, tmp_path, endpoint, keys=keys("stranger")) as stranger:
        async with Device(FIRST, tmp_path, endpoint, keys=keys("listed")) as listed:
            await listed.more(Where.CLOUD)
        await stranger.more(Where.DEVICE, Where.DEVICE_FALLBACK)
        assert stranger.agent.link_state is LinkState.REFUSED
        assert {result.where for result in stranger.results} <= {Where.DEVICE, Where.DEVICE_FALLBACK}
        # Listed while the gateway runs, under load: from then on it is served.
        ring.list("stranger")
        await stranger.more(Where.CLOUD)
    listed.check()
    stranger.check()
