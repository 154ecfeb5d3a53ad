"""A real agent, a gate that fails on command, and a real gateway with real replicas behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.gate import Gate
from edge_agent import EdgeAgent
from edge_agent.result import Result, Where
from shared.config import AgentConfig, CloudConfig, parse_config
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import eager, model

__all__ = [
    "DEADLINE_MS",
    "IMAGE",
    "Traffic",
    "agent_behind",
    "check",
    "cloud_of",
    "eventually",
    "gate_to",
    "remote",
]

DEADLINE_MS = 2000.0
"""Of every request; the device needs about a hundredth of it."""

HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 50.0, 300.0
_CUT = 3
PATIENCE_S = 40.0

IMAGE = networks.BATCH_ONE.numpy()
_ANSWER = eager(networks.photos, networks.BATCH_ONE).numpy()
_REMOTE = (Where.CLOUD, Where.SPLIT)


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - any condition, not only an event
            await asyncio.sleep(0.005)


def check(result: Result) -> None:
    """The answer is the whole network's."""
    np.testing.assert_allclose(result.outputs, _ANSWER, rtol=1e-5, atol=1e-6)


def remote(result: Result) -> bool:
    return result.where in _REMOTE


def cloud_of(
    cache_dir: Path,
    *,
    ports: Sequence[int] = (0, 0, 0),
    gateway: Mapping[str, Any] | None = None,
    **served: Any,
) -> CloudConfig:
    """One replica of the network of photographs; ``served`` is what else is said of it."""
    device_port, replica_port, load_port = ports
    fields = {
        "gateway": {
            "device_port": device_port,
            "replica_port": replica_port,
            "load_port": load_port,
            "heartbeat_timeout_ms": 5000,
            **(gateway or {}),
        },
        "models": [model("photos", **served)],
        "cache_dir": str(cache_dir),
        "profile_repeats": 3,
    }
    return parse_config(CloudConfig, fields, "test", {})


def gate_to(*endpoints: str) -> Gate:
    """In front of the gateway's port for devices, and of its load feed."""
    return Gate([("127.0.0.1", int(endpoint.rpartition(":")[2])) for endpoint in endpoints])


@contextlib.asynccontextmanager
async def agent_behind(gate: Gate, cache_dir: Path, **cloud: Any) -> AsyncIterator[EdgeAgent]:
    """An agent that reaches the cloud through ``gate`` alone, and leaves it work from the middle on."""
    device_port, load_port = gate.ports
    link = {
        "gateway": f"tcp://127.0.0.1:{device_port}",
        "load_feed": f"tcp://127.0.0.1:{load_port}",
        "patience_ms": 0,
        "heartbeat_ms": HEARTBEAT_MS,
        "heartbeat_timeout_ms": HEARTBEAT_TIMEOUT_MS,
        "reconnect_min_ms": 20,
        "reconnect_max_ms": 100,
        **cloud,
    }
    fields = {
        "models": [model("photos", deadline_ms=DEADLINE_MS)],
        "cloud": link,
        "cache_dir": str(cache_dir),
        "threads": 1,
        "profile_repeats": 3,
    }
    config = parse_config(AgentConfig, fields, "test", {})
    async with EdgeAgent.from_config(config) as agent:
        agent.pin("photos", _CUT)
        await eventually(lambda: not agent.decision("photos").is_local)
        yield agent


class Traffic:
    """Requests that go on and on from several callers, and what became of each."""

    def __init__(self, infer: Callable[[], Awaitable[Result]]) -> None:
        self.issued = 0
        self.results: list[Result] = []
        self.errors: list[Exception] = []
        self._infer = infer

    @contextlib.asynccontextmanager
    async def flowing(self, callers: int = 3, pause_s: float = 0.01) -> AsyncIterator[Traffic]:
        """Leaving it, all that was asked is answered."""
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                self.issued += 1
                try:
                    result = await self._infer()
                    check(result)
                except Exception as error:  # noqa: BLE001 - kept, to be shown by the test
                    self.errors.append(error)
                else:
                    self.results.append(result)
                await asyncio.sleep(pause_s)

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(ask())
            try:
                yield self
            finally:
                stop.set()

    async def more(self, count: int, condition: Callable[[Result], bool] = lambda _: True) -> list[Result]:
        """The next ``count`` results of which the condition holds, of requests that end from now on."""
        seen = len(self.results)

        def found() -> list[Result]:
            return [result for result in self.results[seen:] if condition(result)]

        await eventually(lambda: len(found()) >= count or self.errors)
        return found()

    @property
    def places(self) -> Counter[str]:
        return Counter(result.where for result in self.results)

    def settle(self, agent: EdgeAgent) -> None:
        """Every request ended once, in a right answer, and nothing of it is left in the agent."""
        assert self.errors == []
        assert len(self.results) == self.issued
        assert max(result.latency_ms for result in self.results) <= DEADLINE_MS * 1.5
        table, counters = agent.pipeline.table, agent.pipeline.table.counters
        ended = counters.completed_by_cloud + counters.completed_by_device
        assert (counters.submitted, ended, counters.failed) == (self.issued, self.issued, 0)
        assert (len(table), table.held_bytes) == (0, 0)
