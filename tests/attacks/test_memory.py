"""Attack: a consumer that takes work and never answers, and producers that go on and on.

Memory is measured in processes of their own: after a warm-up it stays where it is, whatever is still asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench.child import Child
from shared.config import ModelSource
from shared.models import resolve
from shared.wire import MessageType
from tests.attacks.pushy_agent import IMAGE
from tests.cloud_cluster.cloud_peers import FakeDevice, FakeReplica

PATIENCE_S = 90
FLAT_MIB = 32.0
# glibc gives large blocks back when they are freed: what is resident is what is held.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
IMAGE_MIB = IMAGE.numel() / 2**20


@contextlib.asynccontextmanager
async def started(name: str, folder: Path, module: str, *arguments: str) -> AsyncIterator[tuple[Child, Any]]:
    command = [sys.executable, "-m", module, *arguments]
    child = await Child.start(name, command, folder / f"{name}.log", env=GIVES_BACK)
    try:
        yield child, await child.ready(PATIENCE_S)
    finally:
        await child.stop()


@contextlib.asynccontextmanager
async def stalled(endpoint: str, **hello: Any) -> AsyncIterator[FakeReplica]:
    """A replica that is alive, takes any amount of work, and throws it away."""
    async with FakeReplica(endpoint) as replica:
        await replica.hello(credits=1_000_000, **hello)

        async def swallow() -> None:
            while True:
                await replica.next(MessageType.INFER)

        async def beat() -> None:
            while True:
                await replica.settled()
                await asyncio.sleep(0.2)

        tasks = [asyncio.create_task(work()) for work in (swallow, beat)]
        try:
            yield replica
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def cloud(**gateway: Any) -> str:
    ports = {"device_port": 0, "replica_port": 0, "load_port": 0, "heartbeat_timeout_ms": 5000}
    return json.dumps({"gateway": ports | gateway, "models": [{"name": "wide"}]})


@pytest.mark.slow
async def test_behind_a_stalled_cloud_the_device_works_alone_and_memory_stays_flat(tmp_path: Path) -> None:
    graph = resolve(ModelSource(name="wide", factory="tests.attacks.pushy_agent:wide")).captured.graph
    async with (
        asyncio.timeout(PATIENCE_S),
        started("gateway", tmp_path, "bench.load_cloud", "gateway", cloud()) as (gateway, at),
        stalled(at["replica"], model="wide", digest=graph.digest, unit_ms=[0.1] * len(graph.units)),
        started("agent", tmp_path, "tests.attacks.pushy_agent", at["device"], str(tmp_path)) as (agent, _),
    ):
        await agent.call("online")
        warm = await agent.call("push", count=200, timeout_s=PATIENCE_S)
        gateway_mib = (await gateway.call("usage"))["rss_mb"]
        after = await agent.call("push", count=400, timeout_s=PATIENCE_S)
        outcomes = after["outcomes"]
        assert set(outcomes) <= {"device", "device-fallback", "DeadlineError", "OverloadedError"}
        assert outcomes.get("device", 0) + outcomes.get("device-fallback", 0) > 100
        assert outcomes["OverloadedError"] > 0
        # An unbounded queue would have grown by 400 images.
        assert 400 * IMAGE_MIB > 9 * FLAT_MIB
        assert after["rss_mib"] - warm["rss_mib"] < FLAT_MIB
        assert (await gateway.call("usage"))["rss_mb"] - gateway_mib < FLAT_MIB


@pytest.mark.slow
async def test_a_gateway_holds_no_more_than_it_is_told_whoever_sends(tmp_path: Path) -> None:
    """Requests without a deadline wait for ever, and are refused from the limit on."""
    config = cloud(max_bytes=64 * 2**20, max_in_flight=256, max_in_flight_bytes=2**30)
    payload, rounds, burst, devices = bytes(2**20), 24, 5, 4
    async with (
        asyncio.timeout(PATIENCE_S),
        started("gateway", tmp_path, "bench.load_cloud", "gateway", config) as (gateway, at),
        stalled(at["replica"], model="wide"),
        contextlib.AsyncExitStack() as stack,
    ):
        base_mib, grown_mib, request_id = (await gateway.call("usage"))["rss_mb"], list[float](), 0
        senders = [await stack.enter_async_context(FakeDevice(at["device"])) for _ in range(devices)]
        for sender in senders:
            await sender.hello(wide="sha256:a")
        for _ in range(rounds):
            for _ in range(burst):
                request_id += 1
                for sender in senders:
                    await sender.infer(request_id, payload)
            for sender in senders:
                await sender.settled()
            grown_mib.append((await gateway.call("usage"))["rss_mb"] - base_mib)
        refused = sum(sender.waiting(MessageType.ERROR) for sender in senders)
        # 480 MiB were sent; what is over the limit was refused, each of them.
        assert refused == rounds * burst * devices - 63
        assert max(grown_mib) < 64 + 2 * FLAT_MIB, grown_mib
