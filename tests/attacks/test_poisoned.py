"""A split request from end to end while everything that turns bytes into code or objects raises.

Registering a bundle, greeting, serving split requests and fetching their results through the agent's socket
touches none of it.  Capturing a network does (torch.fx writes Python), and belongs to who has the network's
source: it happens before.
"""

from __future__ import annotations

import asyncio
import builtins
import marshal
import pickle
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud_cluster.in_process import InProcessCloud
from edge_agent import Client, EdgeAgent
from edge_agent.local_api import LocalApi
from edge_agent.result import Result, Where
from shared.graph.bundle import save_bundle
from tests.edge_agent.agents import agent_config, cloud_config
from tests.fuzz.small_bundle import small_network

PATIENCE_S = 60
INPUTS = np.arange(8, dtype=np.float32).reshape(2, 4)
POISONED: tuple[tuple[Any, str], ...] = (
    (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (pickle, "_load"), (pickle, "_loads"),
    (pickle, "_Unpickler"), (marshal, "load"), (marshal, "loads"),
    (builtins, "eval"), (builtins, "exec"), (builtins, "compile"),
    (torch, "load"), (torch.export, "load"), (torch.jit, "load"),
)  # fmt: skip
# Python's own import of a module that is on the disk.
_IMPORTS = frozenset(("importlib._bootstrap", "importlib._bootstrap_external"))


class Poison:
    """Whoever calls one of :data:`POISONED` gets an AssertionError, and is remembered."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.called: list[str] = []
        for module, name in POISONED:
            patch.setattr(module, name, self._poisoned(f"{module.__name__}.{name}", getattr(module, name)))

    def _poisoned(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller in _IMPORTS:
                return original(*args, **kwargs)
            self.called.append(f"{name} by {caller}")
            raise AssertionError(f"{name} was called by {caller}")

        return called


@asynccontextmanager
async def served(agent: EdgeAgent, endpoint: str) -> AsyncIterator[Client]:
    async with LocalApi(endpoint, agent) as api, asyncio.TaskGroup() as group:
        running = group.create_task(api.run())
        async with Client(endpoint) as client:
            yield client
        running.cancel()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_bundle(small_network(), tmp_path / "bundle", example=((torch.ones(2, 4),), {}))
    return tmp_path / "bundle"


async def split_requests(bundle: Path, folder: Path, cut: int) -> list[Result]:
    """A cloud and a device that have only this bundle, and what the device's application is answered."""
    network = {"name": "small", "bundle": str(bundle)}
    cloud = cloud_config(folder / "cloud", network)
    async with asyncio.timeout(PATIENCE_S), InProcessCloud(cloud) as running:
        config = agent_config(folder / "device", running.device_endpoint, network | {"cut": cut})
        async with EdgeAgent(config) as agent, served(agent, f"ipc://{folder}/agent.sock") as client:
            await away_from_here(client, "small", INPUTS)
            return [await client.infer("small", INPUTS) for _ in range(5)]


@pytest.mark.parametrize("cut", [0, 1])
async def test_nothing_that_runs_what_it_reads_is_touched_on_the_way(
    cut: int, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    # What is imported when it is first used is imported now: making classes takes exec.
    await split_requests(bundle, tmp_path / "first", cut)
    with monkeypatch.context() as patch:
        poison = Poison(patch)
        results = await split_requests(bundle, tmp_path / "second", cut)
    assert poison.called == []
    assert {result.where for result in results} == {Where.CLOUD if cut == 0 else Where.SPLIT}
    weights = small_network().weights
    hidden = torch.relu(torch.from_numpy(INPUTS) @ weights["first.weight"].T + weights["first.bias"])
    expected = (hidden @ weights["second.weight"].T).view(2, 2, 1)
    for result in results:
        np.testing.assert_allclose(result.outputs, expected.numpy(), rtol=1e-5)


async def away_from_here(client: Client, model: str, inputs: Any) -> Result:
    """The first result in which the cloud had a part."""
    while True:
        result = await client.infer(model, inputs)
        if result.where is not Where.DEVICE:
            return result
        await asyncio.sleep(0.02)


def test_the_poison_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is replaced, under every name by which code calls it."""
    with monkeypatch.context() as patch:
        poison = Poison(patch)
        for module, name in POISONED:
            with pytest.raises(AssertionError, match=f"{name} was called by"):
                getattr(module, name)("1")
    assert len(poison.called) == len(POISONED)
    assert getattr(builtins, "eval")("1") == 1  # noqa: B009 - it is back
