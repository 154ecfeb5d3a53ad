"""Agent, application, gateway and replica that all put unknown fields into every header work together."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud_cluster.in_process import InProcessCloud
from edge_agent import Client, EdgeAgent
from edge_agent.result import Where
from shared.codec import Codec
from shared.wire import protocol
from shared.wire.messages import Header
from tests.cloud_cluster.cloud_peers import until
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import agent_config, cloud_config, eager, model
from tests.shared.wire.test_skew import newer

PATIENCE_S = 60
IMAGE = networks.BATCH_ONE.numpy()


class Tomorrow:
    """Encodes headers as a release does that knows more fields; ``kinds`` are those that it has sent."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()

    def encode(self, header: Header) -> bytes:
        self.kinds.add(type(header).__name__)
        return msgspec.msgpack.encode(newer(msgspec.msgpack.decode(msgspec.msgpack.encode(header))))


async def test_a_split_request_is_served_among_peers_that_know_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tomorrow = Tomorrow()
    monkeypatch.setattr(protocol, "_ENCODER", tomorrow)
    socket = f"ipc://{tmp_path}/agent.sock"
    async with (
        asyncio.timeout(PATIENCE_S),
        InProcessCloud(cloud_config(tmp_path / "cloud", model("photos"))) as cloud,
        EdgeAgent.from_config(
            agent_config(tmp_path / "device", cloud.device_endpoint, model("photos"), socket=socket),
            serve=True,
        ) as agent,
        Client(socket) as client,
    ):
        await until(lambda: agent.link_state == "online")
        agent.pin("photos", 2, Codec.FLOAT32)
        result = await client.infer("photos", IMAGE)
        assert result.where is Where.SPLIT, result.fallback
        expected = eager(networks.photos, networks.BATCH_ONE).numpy()
        np.testing.assert_allclose(result.outputs, expected, rtol=1e-5, atol=1e-6)
        await until(lambda: {"LoadReport", "Pong", "Credit"} <= tomorrow.kinds)
    assert tomorrow.kinds >= {
        "Hello", "Card", "Announce", "Infer", "Result", "Ping", "Pong", "LoadReport", "ReplicaHello",
        "Credit", "LocalInfer", "LocalResult", "Goodbye",
    }  # fmt: skip
