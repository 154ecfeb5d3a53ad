"""Replicas that come and go with the load, gateways on several nodes, and upgrades under load, by real Serve.

Two Ray nodes on this machine share its address, so that gateways take free ports and tell where they are.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from cloud_cluster.cluster_view import GatewayReport
from edge_agent.agent import EdgeAgent
from edge_agent.result import Result, Where
from shared.codec import Codec, encode
from shared.config import AgentConfig, ServedModelConfig
from shared.graph import Graph
from shared.models import resolve
from shared.wire import Message, MessageType, decode_message
from shared.wire.messages import Infer, ModelLoad, Ping
from tests.cloud_cluster.cloud_peers import LIMITS, FakeDevice

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(170)]

# The fake devices here are silent for long.
GATEWAY = {"device_port": 0, "replica_port": 0, "load_port": 0, "device_silence_s": 120}
FIRST = "tests.cloud_cluster.cloud_peers:tiny_net"
SECOND = "tests.cloud_cluster.cloud_peers:another_tiny_net"
PATIENCE_S = 60


@pytest.fixture(scope="module")
def serving() -> Iterator[Any]:
    """``ray.serve`` in this process, connected to a cluster of two nodes of our own."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Set for this process too: Ray reads them when it is imported.
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        warnings.simplefilter("ignore")
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        yield serve
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


async def deploy(serving: Any, *models: dict[str, Any], **gateway: Any) -> None:
    """As ``serve run`` does; returns when every deployment has what it is to have."""
    from cloud_cluster.application import app

    for model in models:
        model.setdefault("num_cpus", 0.2)
    config = {"gateway": {**GATEWAY, **gateway}, "models": list(models), "profile_repeats": 3}
    await asyncio.to_thread(serving.run, app(config))


async def gateways(serving: Any) -> list[GatewayReport]:
    handle = await asyncio.to_thread(serving.get_deployment_handle, "Gateway", "default")
    reports: list[GatewayReport] = await handle.broadcast("report").results_async()
    return reports


Seen = Callable[[Callable[[ModelLoad], bool]], Awaitable[None]]


@asynccontextmanager
async def load_feed(*endpoints: str) -> AsyncIterator[Seen]:
    """``await seen(condition)`` waits for a report on the first network that fulfils it."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"")
    for endpoint in endpoints:
        socket.connect(endpoint)

    async def seen(condition: Callable[[ModelLoad], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                report = decode_message(await socket.recv_multipart(), LIMITS).header
                if condition(report.models[0]):
                    return

    try:
        yield seen
    finally:
        context.destroy(linger=0)


class Work:
    """One request of a tiny network, with its input at hand."""

    def __init__(self, factory: str) -> None:
        model = resolve(ServedModelConfig(name="net", factory=factory))
        self.graph: Graph = model.captured.graph
        header, self.payload = encode(model.example[0][0], Codec.FLOAT32, self.graph.inputs[0])
        self.infer = Infer(batch=1, tensors=[header], reply_codec=Codec.FLOAT32)

    async def send(self, device: FakeDevice, request_id: int, model: int) -> None:
        await device.send(self.infer, [self.payload], request_id=request_id, model=model, cut=0)


async def served(device: FakeDevice, **digests: str) -> int:
    """The index of the one network that is offered, once it has a replica."""
    await device.greet(**digests)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            (card,) = (await device.next_card()).header.models
            if card.replicas:
                return int(card.index)


async def answered(device: FakeDevice) -> Message:
    async with asyncio.timeout(PATIENCE_S):
        return await device.next(MessageType.RESULT)


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


async def test_a_new_version_is_served_beside_the_old_and_no_request_is_lost(
    serving: Any, tmp_path: Path
) -> None:
    old = {"name": "net", "factory": FIRST}
    new = {"name": "net", "factory": SECOND, "version": "2"}
    await deploy(serving, dict(old))
    (before,) = await gateways(serving)
    config = AgentConfig.model_validate(
        {
            "cloud": {"gateway": before["device_endpoint"]},
            "models": [{"name": "net", "factory": FIRST, "cut": 0, "codecs": ["float32"]}],
            "cache_dir": str(tmp_path),
            "profile_repeats": 3,
        }
    )
    results: list[Result] = []
    async with EdgeAgent.from_config(config) as agent:
        (image,), _ = agent.models["net"].example

        async def load() -> None:
            while True:
                results.append(await agent.infer("net", image, deadline_ms=30_000))
                await asyncio.sleep(0.02)

        async def more(where: set[Where], count: int = 5) -> None:
            """Until so many answers in a row were computed there."""
            start = len(results)
            async with asyncio.timeout(PATIENCE_S):
                while len(results) < start + count or {r.where for r in results[-count:]} - where:
                    assert not loading.done()
                    await asyncio.sleep(0.02)

        loading = asyncio.create_task(load())
        try:
            await more({Where.CLOUD})
            await deploy(serving, dict(old), dict(new))
            await more({Where.CLOUD})
            work = Work(SECOND)
            async with FakeDevice(before["device_endpoint"]) as device:
                index = await served(device, net=work.graph.digest)
                await work.send(device, 1, index)
                assert (await answered(device)).request_id == 1
                await more({Where.CLOUD})

                await deploy(serving, dict(new))
                # What the agent holds is served no more.
                await more({Where.DEVICE, Where.DEVICE_FALLBACK})
                await work.send(device, 2, index)
                assert (await answered(device)).request_id == 2
        finally:
            loading.cancel()
            await asyncio.wait([loading])
    assert loading.cancelled()
    (after,) = await gateways(serving)
    # The same gateway, at its place, through both changes.
    assert {**after, "models": None} == {**before, "models": None}
    whole = results[-1].outputs
    assert max(abs(result.outputs - whole).max() for result in results) <= 1e-5 * abs(whole).max()
