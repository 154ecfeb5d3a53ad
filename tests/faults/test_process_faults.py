"""Processes of the cloud die, stop and come back, with work in flight."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from bench.child import Child, free_ports
from bench.cloud_process import start_cloud
from cloud_cluster.dispatch import Action, Dispatcher
from cloud_cluster.in_process import InProcessCloud
from edge_agent.link import LinkState
from edge_agent.result import Where
from tests.faults.rig import (
    IMAGE,
    Traffic,
    agent_behind,
    check,
    cloud_of,
    eventually,
    gate_to,
    remote,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


async def test_a_gateway_that_is_stopped_killed_and_started_anew_costs_no_answer(
    cache_dir: Path, tmp_path: Path
) -> None:
    ports = free_ports(3)
    config = cloud_of(cache_dir, ports=ports).model_dump(mode="json")
    log = tmp_path / "cloud.log"
    child, device_endpoint, load_endpoint = await start_cloud(config, log)
    try:
        with gate_to(device_endpoint, load_endpoint) as gate:
            async with agent_behind(gate, cache_dir) as agent:
                traffic = Traffic(partial(agent.infer, "photos", IMAGE))
                async with traffic.flowing():
                    await traffic.more(5, remote)
                    os.kill(child.pid, signal.SIGSTOP)
                    await eventually(lambda: agent.link_state is LinkState.OFFLINE)
                    assert "nothing heard" in agent.link_reason
                    await traffic.more(20)
                    os.kill(child.pid, signal.SIGCONT)
                    await traffic.more(5, remote)
                    os.kill(child.pid, signal.SIGKILL)
                    await eventually(lambda: agent.link_state is LinkState.OFFLINE)
                    await traffic.more(20)
                    await child.stop()
                    child, _, _ = await start_cloud(config, log)
                    await traffic.more(5, remote)
                traffic.settle(agent)
    finally:
        await child.stop()
    assert traffic.places["device"] + traffic.places["device-fallback"] >= 40


@contextlib.asynccontextmanager
async def replicas_of(
    cloud: InProcessCloud, tmp_path: Path, *names: str
) -> AsyncIterator[dict[bytes, Child]]:
    """Replicas in processes of their own, by the names that the gateway knows."""
    async with contextlib.AsyncExitStack() as stack:
        children = []
        for name in names:
            argv = [sys.executable, "-m", "bench.load_cloud", "replica"]
            argv += [cloud.config.model_dump_json(), cloud.replica_endpoint]
            children.append(await Child.start(name, argv, tmp_path / f"{name}.log"))
            stack.push_async_callback(children[-1].stop)
        yield {(await child.ready())["replica"].encode(): child for child in children}


async def test_work_of_a_lost_replica_is_done_by_another_and_answered_once(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost_with: dict[bytes, int] = {}
    gone = Dispatcher.replica_gone

    def noted(self: Dispatcher, replica: bytes, now_ms: float) -> list[Action]:
        lost_with[replica] = len(self._replicas[replica].in_flight)
        return gone(self, replica, now_ms)

    monkeypatch.setattr(Dispatcher, "replica_gone", noted)
    config = cloud_of(cache_dir, gateway={"heartbeat_timeout_ms": 300}, replicas=0)
    async with (
        InProcessCloud(config) as cloud,
        replicas_of(cloud, tmp_path, "first", "second") as replicas,
    ):
        with gate_to(cloud.device_endpoint, cloud.load_endpoint) as gate:
            async with agent_behind(gate, cache_dir) as agent:
                (first, one), (_, other) = replicas.items()

                async def lose_first(number: signal.Signals) -> None:
                    """With work that it was sent, while the other one goes on."""
                    # Both stand still, so that each is sent some.
                    for child in replicas.values():
                        os.kill(child.pid, signal.SIGSTOP)
                    asked = [
                        asyncio.ensure_future(agent.infer("photos", IMAGE, deadline_ms=60_000))
                        for _ in range(4)
                    ]
                    await eventually(lambda: cloud.gateway.status()["models"]["photos"]["in_flight"] == 4)
                    lost_with.clear()
                    os.kill(one.pid, number)
                    os.kill(other.pid, signal.SIGCONT)
                    for result in await asyncio.gather(*asked):
                        check(result)
                        assert (result.where, result.fallback) == (Where.SPLIT, None)
                    assert lost_with[first] > 0

                await lose_first(signal.SIGSTOP)
                # It finishes what it had, and answers for requests that have left: to nobody.
                os.kill(one.pid, signal.SIGCONT)
                await eventually(lambda: cloud.gateway.ready("photos") == 2)
                check(await agent.infer("photos", IMAGE, deadline_ms=60_000))
                await lose_first(signal.SIGKILL)
                counters = agent.pipeline.table.counters
                assert counters.completed_by_cloud == counters.submitted
                assert counters.late_answers == 0

                traffic = Traffic(partial(agent.infer, "photos", IMAGE))
                async with traffic.flowing():
                    await traffic.more(5, remote)
                    os.kill(other.pid, signal.SIGKILL)
                    await eventually(lambda: cloud.gateway.ready("photos") == 0)
                    await traffic.more(20)
                    async with replicas_of(cloud, tmp_path, "third"):
                        await traffic.more(5, remote)
                assert traffic.errors == []
                assert len(traffic.results) == traffic.issued
                assert set(traffic.places) & {"device", "device-fallback"}
