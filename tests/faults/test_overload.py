"""More than the cloud can take: it says so, and the answers still come."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cloud_cluster.executor import Job
from cloud_cluster.in_process import InProcessCloud
from cloud_cluster.joining import Running
from cloud_cluster.torch_executor import TorchExecutor
from edge_agent.actions import Fallback
from edge_agent.result import Where
from tests.faults.rig import IMAGE, agent_behind, check, cloud_of, eventually, gate_to

CREDITS, MAX_QUEUE = 2, 4
CAPACITY = CREDITS + MAX_QUEUE


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


class Held(TorchExecutor):
    """The real network, which computes nothing before it is let go."""

    go: threading.Event

    def run(self, parts: Sequence[Job | Any], units: Sequence[int]) -> tuple[Running, float]:
        assert self.go.wait(60)
        return super().run(parts, units)


async def test_three_times_what_the_cloud_takes_is_refused_there_and_answered_here(cache_dir: Path) -> None:
    """What one replica and its queue hold, three times over, at once."""
    config = cloud_of(cache_dir, max_queue=MAX_QUEUE, credits=CREDITS)
    go = threading.Event()

    def held(model: Any) -> TorchExecutor:
        executor = Held.load(model, cache_dir, 3)
        executor.go = go
        return executor

    async with InProcessCloud(config, executor_for=held) as cloud:
        with gate_to(cloud.device_endpoint, cloud.load_endpoint) as gate:
            async with agent_behind(gate, cache_dir) as agent:
                asked = [
                    asyncio.ensure_future(agent.infer("photos", IMAGE, deadline_ms=60_000))
                    for _ in range(3 * CAPACITY)
                ]
                await eventually(lambda: sum(each.done() for each in asked) == 2 * CAPACITY)
                status = cloud.gateway.status()["models"]["photos"]
                assert (status["in_flight"], status["queued"]) == (CREDITS, MAX_QUEUE)
                go.set()
                results = await asyncio.gather(*asked)
                for result in results:
                    check(result)
                places = Counter((result.where, result.fallback) for result in results)
                assert places == {
                    (Where.SPLIT, None): CAPACITY,
                    (Where.DEVICE_FALLBACK, Fallback.REFUSED): 2 * CAPACITY,
                }
                counters = agent.pipeline.table.counters
                assert counters.submitted == counters.completed_by_cloud + counters.completed_by_device
                assert (counters.completed_by_cloud, counters.failed) == (CAPACITY, 0)
                assert cloud.gateway.status()["models"]["photos"]["refused"] == 2 * CAPACITY
