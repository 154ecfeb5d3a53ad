"""Agent, gateway and replica that all put unknown fields into every header still work together."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cloud_cluster.in_process import InProcessCloud
from edge_agent import EdgeAgent
from edge_agent.result import Where
from shared.wire import protocol
from shared.wire.messages import Header
from tests.attacks.test_poisoned import away_from_here, served
from tests.cloud_cluster.cloud_peers import until
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import agent_config, cloud_config, eager, model
from tests.shared.wire.test_skew import newer

PATIENCE_S = 60


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
    image: Any = networks.BATCH_ONE.numpy()
    cloud = cloud_config(tmp_path / "cloud", model("photos"))
    monkeypatch.setattr(protocol, "_ENCODER", tomorrow)
    async with asyncio.timeout(PATIENCE_S), InProcessCloud(cloud) as running:
        config = agent_config(tmp_path / "device", running.device_endpoint, model("photos", cut=2))
        async with EdgeAgent(config) as agent, served(agent, f"ipc://{tmp_path}/agent.sock") as client:
            result = await away_from_here(client, "photos", image)
            assert result.where is Where.SPLIT
            expected = eager(networks.photos, networks.BATCH_ONE).numpy()
            np.testing.assert_allclose(result.outputs, expected, rtol=1e-5, atol=1e-6)
            await until(lambda: {"LoadReport", "Pong", "Credit"} <= tomorrow.kinds)
    assert tomorrow.kinds >= {
        "Hello", "Card", "Announce", "Infer", "Result", "Ping", "Pong", "LoadReport", "ReplicaHello",
        "Credit", "LocalInfer", "LocalResult", "Goodbye",
    }  # fmt: skip
