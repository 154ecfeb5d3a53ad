"""Configurations of agents and clouds for the agent's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shared.config import AgentConfig, CloudConfig, parse_config

__all__ = ["NOWHERE", "agent_config", "cloud_config", "eager", "model"]

NOWHERE = "tcp://127.0.0.1:9"
"""The discard port: nothing listens."""


def model(name: str, factory: str | None = None, **values: Any) -> dict[str, Any]:
    path = f"tests.edge_agent.edge_networks:{factory or name}"
    return {"name": name, "factory": path, **values}


def agent_config(
    cache_dir: Path, gateway: str, *models: dict[str, Any], timeout_ms: float = 5000.0, **values: Any
) -> AgentConfig:
    cloud = {
        "gateway": gateway,
        "patience_ms": 0,  # one device alone; for many see test_patience
        "heartbeat_ms": 50,
        "heartbeat_timeout_ms": timeout_ms,
        "reconnect_min_ms": 20,
        "reconnect_max_ms": 100,
    }
    fields = {"models": list(models), "cloud": cloud, "cache_dir": str(cache_dir), "threads": 1}
    return parse_config(AgentConfig, {"profile_repeats": 3, **fields, **values}, "test", {})


def cloud_config(cache_dir: Path, *models: dict[str, Any], port: int = 0) -> CloudConfig:
    gateway = {"device_port": port, "replica_port": 0, "load_port": 0, "heartbeat_timeout_ms": 5000}
    fields = {"gateway": gateway, "models": list(models), "cache_dir": str(cache_dir), "profile_repeats": 3}
    return parse_config(CloudConfig, fields, "test", {})


def eager(factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return factory()[0](*args, **kwargs)
