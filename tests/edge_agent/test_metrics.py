"""What a Prometheus server finds: parsed by its own client's parser, from a real agent over HTTP."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge_agent.agent import EdgeAgent
from edge_agent.metrics import MetricsServer
from shared.errors import InputMismatchError, StartupError
from tests.edge_agent.agents import NOWHERE, agent_config, model
from tests.edge_agent.edge_networks import BATCH_ONE

PHOTO = BATCH_ONE.numpy()


def scrape(port: int) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name and label values, those in the order of their labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[key] = sample.value
    return found


async def test_an_agent_is_scraped(tmp_path: Path) -> None:
    config = agent_config(tmp_path, NOWHERE, model("photos", calibration={"samples": 2}))
    async with EdgeAgent.from_config(config) as agent:
        with MetricsServer(agent, "127.0.0.1", 0) as server:
            before = await asyncio.to_thread(scrape, server.port)
            for _ in range(3):
                result = await agent.infer("photos", PHOTO)
            with pytest.raises(InputMismatchError):
                await agent.infer("photos", PHOTO.astype(np.float32))
            found = await asyncio.to_thread(scrape, server.port)
            with (
                pytest.raises(StartupError, match="another port"),
                MetricsServer(agent, "127.0.0.1", server.port),
            ):
                raise AssertionError("two on one port")
    assert before["suture_agent_requests_total"]["photos", "device"] == 0
    assert found["suture_agent_requests_total"]["photos", "device"] == 3
    assert found["suture_agent_errors_total"]["InputMismatchError", "photos"] == 1
    assert found["suture_agent_online"][()] == 0
    assert found["suture_agent_latency_seconds_count"][("photos",)] == 3
    assert found["suture_agent_latency_seconds_bucket"]["+Inf", "photos"] == 3
    counts = list(found["suture_agent_latency_seconds_bucket"].values())
    assert counts == sorted(counts)
    assert found["suture_agent_latency_seconds_sum"][("photos",)] >= result.latency_ms / 1e3
    assert found["suture_agent_units_on_device"][("photos",)] == len(agent.graph("photos").units)
    assert found["suture_agent_energy_joules_total"][("photos",)] > 0


async def test_a_server_that_is_left_frees_its_port(tmp_path: Path) -> None:
    config = agent_config(tmp_path, NOWHERE, model("words", calibration={"samples": 2}))
    async with EdgeAgent.from_config(config) as agent:
        with MetricsServer(agent, "127.0.0.1", 0) as server:
            port = server.port
        with MetricsServer(agent, "127.0.0.1", port) as again:
            assert "suture_agent_up_seconds" in await asyncio.to_thread(scrape, again.port)
