"""The agent's process and the signals that end it, with requests in flight in the cloud."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from edge_agent import Client
from shared.codec import Codec, encode
from shared.errors import RefusedError, UnavailableError
from shared.graph import Graph, load
from shared.graph.capture import capture
from shared.wire import MessageType
from shared.wire.messages import Card, Limits, ModelCard, TailTimings
from shared.wire.messages import Result as ResultHeader
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.fake_gateway import FakeGateway, eventually

ROOT = Path(__file__).parents[2]
IMAGE = networks.BATCH_ONE.numpy()
OUTPUTS = np.arange(5, dtype=np.float32).reshape(1, 5)

pytestmark = pytest.mark.slow


@cache
def photos() -> Graph:
    module, args = networks.photos()
    return load(capture(module, args, name="photos")).graph


@dataclass
class Running:
    """``edge-agent`` in a process of its own, a gateway that holds what it gets, and a client."""

    process: asyncio.subprocess.Process
    gateway: FakeGateway
    client: Client
    socket: Path

    async def requests(self, count: int) -> list[asyncio.Task[Any]]:
        """In flight at the gateway."""
        infer = self.client.infer
        requests = [asyncio.create_task(infer("photos", IMAGE, deadline_ms=90_000)) for _ in range(count)]
        await eventually(lambda: len(self.gateway.of(MessageType.INFER)) == count)
        return requests

    def answer_all(self) -> None:
        (slot,) = photos().outputs
        for infer in self.gateway.of(MessageType.INFER):
            header, data = encode(torch.from_numpy(OUTPUTS), Codec.FLOAT32, slot)
            result = ResultHeader(tensors=[header], timings=TailTimings())
            self.gateway.send(result, (bytes(data),), infer.request_id)

    async def refused(self) -> RefusedError:
        """The refusal that every new request gets from the moment at which the agent saw the signal."""
        async with asyncio.timeout(60):
            while True:
                probe = asyncio.create_task(self.client.infer("photos", IMAGE, deadline_ms=90_000))
                done, _ = await asyncio.wait([probe], timeout=0.05)
                if done and isinstance(probe.exception(), RefusedError):
                    return probe.exception()  # type: ignore[return-value]
                probe.cancel()
                await asyncio.wait([probe])

    async def ended(self) -> tuple[int, str]:
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            log = (await self.process.stderr.read()).decode()
            return await self.process.wait(), log


@contextlib.asynccontextmanager
async def running(directory: Path, **values: Any) -> AsyncIterator[Running]:
    units = len(photos().units)
    offer = ModelCard(name="photos", digest=photos().digest, index=0, unit_ms=[0.01] * units, replicas=1)
    gateway = FakeGateway()
    gateway.card = Card(gateway="fake", software="test", limits=Limits(), models=[offer])
    socket, config = directory / "agent.sock", directory / "agent.yaml"
    async with gateway.serving():
        network = {"name": "photos", "factory": "tests.edge_agent.edge_networks:photos", "cut": 3}
        link = {"gateway": gateway.endpoint, "heartbeat_timeout_ms": 30_000, "probe_bytes": 0}
        common = {
            "socket": f"ipc://{socket}",
            "cache_dir": str(directory),
            "threads": 1,
            "profile_repeats": 3,
        }
        config.write_text(yaml.safe_dump({"models": [network], "cloud": link, **common, **values}))
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("edge-agent"),
            "--config",
            config,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stderr is not None
            lines: list[bytes] = []
            async with asyncio.timeout(90):
                while not lines or b'"event": "ready"' not in lines[-1]:
                    lines.append(await process.stderr.readline())
                    assert lines[-1], b"".join(lines).decode()
            async with Client(f"ipc://{socket}", drain_s=0) as client:
                yield Running(process, gateway, client, socket)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_a_signal_lets_what_is_in_flight_end_refuses_the_rest_and_exits_0(tmp_path: Path) -> None:
    async with running(tmp_path, drain_s=80) as agent:
        requests = await agent.requests(5)
        agent.process.send_signal(signal.SIGTERM)
        refusal = await agent.refused()
        assert refusal.retry_after_ms == 80_000
        assert not any(request.done() for request in requests)
        agent.answer_all()
        for request in requests:
            assert np.array_equal((await request).outputs, OUTPUTS)
        status, log = await agent.ended()
        assert status == 0, log
        assert "Traceback" not in log
        await eventually(lambda: agent.gateway.of(MessageType.GOODBYE))
        assert not agent.socket.exists()


async def test_what_does_not_end_within_drain_s_is_an_error_that_a_retry_can_help(tmp_path: Path) -> None:
    async with running(tmp_path, drain_s=0.2) as agent:
        requests = await agent.requests(3)
        agent.process.send_signal(signal.SIGINT)
        for request in requests:
            with pytest.raises(UnavailableError, match="stopped before this request ended"):
                await request
        status, log = await agent.ended()
        assert status == 0, log
        await eventually(lambda: agent.gateway.of(MessageType.GOODBYE))


async def test_a_second_signal_ends_the_agent_at_once_as_that_signal_does(tmp_path: Path) -> None:
    async with running(tmp_path, drain_s=80) as agent:
        requests = await agent.requests(3)
        agent.process.send_signal(signal.SIGTERM)
        await agent.refused()
        agent.process.send_signal(signal.SIGINT)
        assert (await agent.ended())[0] == -signal.SIGINT
        for request in requests:
            with pytest.raises(UnavailableError, match="went away"):
                await request
