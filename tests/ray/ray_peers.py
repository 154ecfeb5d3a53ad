"""What the tests of a cloud under Ray have in common: deploying, devices by hand, and an agent under load."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq
import zmq.asyncio

from cloud_cluster.cluster_view import GatewayReport
from edge_agent.agent import EdgeAgent
from edge_agent.result import Result, Where
from shared.codec import Codec, encode
from shared.config import AgentConfig, ServedModelConfig
from shared.graph import Graph, load
from shared.models import resolve
from shared.wire import Message, MessageType, decode_message
from shared.wire.messages import Infer, ModelLoad
from tests.cloud_cluster.cloud_peers import LIMITS, FakeDevice

# The fake devices here are silent for long.
GATEWAY = {"device_port": 0, "replica_port": 0, "load_port": 0, "device_silence_s": 120}
FIRST = "tests.cloud_cluster.cloud_peers:tiny_net"
SECOND = "tests.cloud_cluster.cloud_peers:another_tiny_net"
PATIENCE_S = 60


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


class Device:
    """An agent that asks for the whole network, cut 0, again and again: ``async with Device(...) as device``.

    Every request must be answered, wherever; :meth:`check` holds all answers against the network itself.
    """

    def __init__(self, factory: str, cache_dir: Path, *gateways: str, **cloud: Any) -> None:
        self.results: list[Result] = []
        self.lost_ms = 0.0
        self._factory = factory
        self.agent = EdgeAgent.from_config(
            AgentConfig.model_validate(
                {
                    "cloud": {"gateway": list(gateways), **cloud},
                    "models": [{"name": "net", "factory": factory, "cut": 0, "codecs": ["float32"]}],
                    "cache_dir": str(cache_dir),
                    "profile_repeats": 3,
                }
            )
        )
        self._stack = contextlib.AsyncExitStack()
        self._loading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Device:
        await self._stack.enter_async_context(self.agent)
        self._loading = asyncio.create_task(self._load())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._loading is not None
        self._loading.cancel()
        await asyncio.wait([self._loading])
        await self._stack.aclose()
        # Had a request been lost, the task would have ended with its exception.
        assert self._loading.cancelled(), self._loading.exception()

    async def _load(self) -> None:
        (image,), _ = self.agent.models["net"].example
        while True:
            self.results.append(await self.agent.infer("net", image, deadline_ms=30_000))
            await asyncio.sleep(0.02)

    async def more(self, *where: Where, count: int = 5) -> None:
        """Until so many answers in a row were computed there."""
        assert self._loading is not None
        start = len(self.results)
        async with asyncio.timeout(PATIENCE_S):
            while len(self.results) < start + count or {r.where for r in self.results[-count:]} - {*where}:
                assert not self._loading.done(), self._loading.exception()
                await asyncio.sleep(0.02)

    def check(self) -> None:
        """Every answer so far is that of this device's own network."""
        model = resolve(ServedModelConfig(name="net", factory=self._factory))
        (whole,) = load(model.captured)([model.example[0][0]])
        worst = max(float(np.abs(result.outputs - whole.numpy()).max()) for result in self.results)
        assert worst <= 1e-5 * float(whole.abs().max())
