"""A device in virtual time: the agent's own pipeline, table, guard and controller between worker and link."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from edge_agent.controller import Controller
from edge_agent.goals import power_of
from edge_agent.pipeline import Pipeline
from edge_agent.power import choose_meter
from edge_agent.requests import RequestTable
from edge_agent.result import Result
from edge_agent.served import Served
from shared.config import CloudLinkConfig, PowerConfig
from tests.edge_agent import edge_networks as networks
from tests.virtual.cloud import Gateway
from tests.virtual.link import VirtualLink
from tests.virtual.worker import VirtualWorker, network

__all__ = ["VirtualDevice"]

_IMAGE = networks.BATCH_ONE.numpy()


class VirtualDevice:
    """Entered, it runs; left, nothing of it is left.  ``link`` says what its wires are like."""

    def __init__(
        self,
        gateway: Gateway,
        draw: random.Random,
        *,
        name: str = "device",
        factor: float = 1.0,
        max_in_flight: int = 32,
        bps: float = 1e8,
        latency_ms: float = 2.0,
        lose: float = 0.0,
    ) -> None:
        program, profile = network()
        self.whole_ms = profile.whole_ms
        self.worker = VirtualWorker(factor)
        self.table = RequestTable(max_in_flight, 2**30)
        self.controller = Controller(CloudLinkConfig(), seed=draw.randrange(2**31))
        self.link = VirtualLink(name, gateway, draw, bps=bps, latency_ms=latency_ms, lose=lose)
        meter = choose_meter("model", power_of(PowerConfig()), None).meter
        self._group = asyncio.TaskGroup()
        worker: Any = self.worker
        self.pipeline = Pipeline(worker, self.controller, self.table, self._spawn, meter)
        self._served = Served("photos", program.graph, 1000.0)
        self.pipeline.models["photos"] = self._served
        self.controller.add_model("photos", program.graph, profile, 0.0)
        self.link.side = self.pipeline.cloud
        link: Any = self.link
        self.pipeline.cloud.link = link

    async def __aenter__(self) -> VirtualDevice:
        await self._group.__aenter__()
        loops = self.worker.run(), self.pipeline.run_timers(), self.link.run()
        self._loops = [self._spawn(loop) for loop in loops]
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        for loop in self._loops:
            loop.cancel()
        await self._group.__aexit__(None, None, None)

    async def infer(self, deadline_ms: float) -> Result:
        return await self.pipeline.infer(self._served, (_IMAGE,), {}, deadline_ms)

    def _spawn(self, coroutine: Any, name: str | None = None) -> asyncio.Task[None]:
        return self._group.create_task(coroutine, name=name)
