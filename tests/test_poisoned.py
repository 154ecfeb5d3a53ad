"""A whole run, from bundles through messages and codecs to answers, with all that executes data poisoned."""

from __future__ import annotations

import builtins
import marshal
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud_cluster.in_process import InProcessCloud
from edge_agent import Client, EdgeAgent
from shared.codec import Codec
from shared.graph import save_bundle
from shared.graph.capture import capture
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import agent_config, cloud_config, eager
from tests.edge_agent.fake_gateway import eventually

IMAGE = networks.BATCH_ONE.numpy()
PHOTO = eager(networks.photos, networks.BATCH_ONE).numpy()

POISONED: list[tuple[Any, str]] = [
    (builtins, "eval"),
    (builtins, "exec"),
    (marshal, "loads"),
    (pickle, "load"),
    (pickle, "loads"),
    (pickle, "Unpickler"),
    (torch, "load"),
    (torch.export, "load"),
    (torch.jit, "load"),
]


async def run(cache_dir: Path, bundle: Path) -> None:
    """Device and cloud load the bundle, and a client asks at every cut with an exact and a lossy codec."""
    model = {"name": "photos", "bundle": str(bundle)}
    async with InProcessCloud(cloud_config(cache_dir, model)) as cloud:
        socket = f"ipc://{cache_dir}/agent.sock"
        config = agent_config(cache_dir, cloud.device_endpoint, model, socket=socket)
        async with EdgeAgent.from_config(config, serve=True) as agent, Client(socket) as client:
            await eventually(lambda: agent.link_state == "online")
            for cut in range(len(agent.graph("photos").cuts) - 1):
                for codec in (Codec.FLOAT32, Codec.UINT8_ZSTD):
                    agent.pin("photos", cut, codec)
                    result = await client.infer("photos", IMAGE)
                    assert result.where in ("cloud", "split"), result.fallback
                    np.testing.assert_allclose(result.outputs, PHOTO, atol=0.02)


async def test_nothing_that_was_received_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, args = networks.photos()
    save_bundle(capture(module, args, name="photos"), tmp_path / "bundle")
    await run(tmp_path, tmp_path / "bundle")  # what is imported on first use is imported now
    called: list[str] = []

    def poison(name: str) -> Any:
        def poisoned(*_: Any, **__: Any) -> Any:
            called.append(name)
            raise AssertionError(f"{name} was called")

        return poisoned

    with monkeypatch.context() as patch:
        for owner, name in POISONED:
            patch.setattr(owner, name, poison(f"{owner.__name__}.{name}"))
        with pytest.raises(AssertionError, match=r"builtins\.eval"):
            eval("1")  # noqa: S307 - that the poison works
        called.clear()
        await run(tmp_path, tmp_path / "bundle")
    assert called == []
