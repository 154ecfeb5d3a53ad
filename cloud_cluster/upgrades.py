"""What a changed configuration touches: which parts start anew, and what reaches the others as they run.

Serve restarts the replicas of a deployment whose version has changed, and hands a changed ``user_config`` to
those that it lets run.  By default everything that is deployed again has another version.  Here a version is
what a part cannot change while it runs, so that

- a network that is new, changed or gone touches only its own replicas;
- the list of networks, how much may wait, the limits of devices and the log level reach the gateways
  without a restart, credits and the log level the replicas;
- replica counts and autoscaling are for Serve alone.

Pure; :mod:`cloud_cluster.application` hands it to Serve, :mod:`cloud_cluster.hosts` receives it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from shared.config import CloudConfig, GatewayConfig, ServedModelConfig

__all__ = [
    "changed_gateway",
    "gateway_user_config",
    "gateway_version",
    "replica_config",
    "replica_user_config",
    "replica_version",
]

_LIVE_IN_A_GATEWAY = {
    "replicas",
    "max_devices",
    "max_in_flight",
    "max_in_flight_bytes",
    "max_bytes",
    "max_parked_bytes",
    "load_period_ms",
    "device_silence_s",
}
_LIVE_IN_A_REPLICA = {"credits", "handover_s"}
# For Serve: how many there are, and what Ray reserves, which it compares by itself.
_NOT_OF_A_GATEWAY = {"num_cpus", "resources"}
_NOT_OF_A_REPLICA = {"replicas", "autoscale", "max_queue", "surge_percent"}
_OF_A_REPLICA_IN_GATEWAY = {"heartbeat_ms", "heartbeat_timeout_ms", "max_message_bytes", "keys"}


def gateway_version(config: CloudConfig, software: str) -> str:
    """Of the gateways; ``software`` is that of this program."""
    kept = config.gateway.model_dump(mode="json", exclude=_NOT_OF_A_GATEWAY | _LIVE_IN_A_GATEWAY)
    return _hashed(software, kept)


def gateway_user_config(config: CloudConfig) -> dict[str, Any]:
    """What the gateways take as they run."""
    return {
        "models": [model.model_dump(mode="json", exclude_unset=True) for model in config.models],
        "limits": config.gateway.model_dump(mode="json", include=_LIVE_IN_A_GATEWAY),
        "log": config.log,
    }


def changed_gateway(config: GatewayConfig, limits: dict[str, Any]) -> GatewayConfig:
    """A gateway's configuration with the ``limits`` of another :func:`gateway_user_config`."""
    return config.model_copy(update=limits)


def replica_version(model: ServedModelConfig, config: CloudConfig, software: str) -> str:
    """Of one network's replicas."""
    kept = replica_config(model, config)
    kept.pop("log", None)
    kept["models"] = [model.model_dump(mode="json", exclude=_NOT_OF_A_REPLICA | _LIVE_IN_A_REPLICA)]
    return _hashed(software, kept)


def replica_config(model: ServedModelConfig, config: CloudConfig) -> dict[str, Any]:
    """All that a replica of this network is told of the configuration."""
    return {
        **config.model_dump(mode="json", exclude={"models", "gateway"}, exclude_unset=True),
        "gateway": config.gateway.model_dump(mode="json", include=_OF_A_REPLICA_IN_GATEWAY),
        "models": [model.model_dump(mode="json", exclude=_NOT_OF_A_REPLICA)],
    }


def replica_user_config(model: ServedModelConfig, config: CloudConfig) -> dict[str, Any]:
    """What the replicas of this network take as they run."""
    return {**model.model_dump(mode="json", include=_LIVE_IN_A_REPLICA), "log": config.log}


def _hashed(*depends_on: Any) -> str:
    text = json.dumps(depends_on, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
