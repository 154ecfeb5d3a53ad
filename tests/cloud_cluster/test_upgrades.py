"""Of a changed configuration every key reaches every part that it concerns, and restarts no other."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_cluster.upgrades import (
    changed_gateway,
    gateway_user_config,
    gateway_version,
    replica_config,
    replica_user_config,
    replica_version,
)
from shared.config import AutoscaleConfig, CloudConfig, GatewayConfig, ServedModelConfig

KEYS = {"secret": "/k/gateway.key_secret", "devices": "/k/devices", "replicas": "/k/replicas.key_secret"}
CHANGED: dict[str, Any] = {
    "keys": KEYS,
    "resources": {"suture_gateway": 1},
    "host": "10.0.0.1",
    "insecure": True,
    "name": "other",
    "zoo": "alexnet",
    "factory": "some.module:function",
    "bundle": "/some/bundle",
    "transform_tables": "/some/tables",
    "version": "2",
    "device": "cuda",
    "threads": 3,
    "autoscale": {"max_replicas": 3},
    "precision": "auto",
    "min_agreement": 0.9,
    "calibration": {"samples": 4},
    "log": "debug",
    "cache_dir": "/elsewhere",
    "profile_repeats": 4,
}
"""Numbers that are not here are doubled."""


def config(
    gateway: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **top: Any
) -> CloudConfig:
    models = [{"name": "net", **(model or {})}, {"name": "bystander"}]
    return CloudConfig.model_validate({"gateway": gateway or {}, "models": models, **top})


def value_for(section: type[GatewayConfig] | type[ServedModelConfig], key: str) -> Any:
    if key in CHANGED:
        return CHANGED[key]
    default = section.model_fields[key].default
    return 2 * default or 1


def touched(other: CloudConfig) -> set[str]:
    """What is restarted, or told, on the way from the plain configuration to this one."""
    plain = config()
    net, bystander = plain.models
    changed, same = other.models
    seen = {
        "restart gateways": gateway_version(plain, "1") != gateway_version(other, "1"),
        "tell gateways": gateway_user_config(plain) != gateway_user_config(other),
        "restart replicas": replica_version(net, plain, "1") != replica_version(changed, other, "1"),
        "tell replicas": replica_user_config(net, plain) != replica_user_config(changed, other),
        "restart bystanders": replica_version(bystander, plain, "1") != replica_version(same, other, "1"),
        "tell bystanders": replica_user_config(bystander, plain) != replica_user_config(same, other),
    }
    return {what for what, happens in seen.items() if happens}


LIMITS = {
    "replicas",
    "max_devices",
    "max_in_flight",
    "max_in_flight_bytes",
    "max_bytes",
    "max_parked_bytes",
    "load_period_ms",
    "device_silence_s",
}
OF_EVERYBODY = {"heartbeat_ms", "heartbeat_timeout_ms", "max_message_bytes", "keys"}
RAYS_OWN = {"num_cpus", "resources"}


@pytest.mark.parametrize("key", sorted(GatewayConfig.model_fields))
def test_a_key_of_the_gateway(key: str) -> None:
    found = touched(config(gateway={key: value_for(GatewayConfig, key)}))
    if key in LIMITS:
        assert found == {"tell gateways"}
    elif key in OF_EVERYBODY:
        assert found == {"restart gateways", "restart replicas", "restart bystanders"}
    elif key in RAYS_OWN:
        assert found == set()
    else:
        assert found == {"restart gateways"}


@pytest.mark.parametrize("key", sorted(ServedModelConfig.model_fields))
def test_a_key_of_one_network_never_restarts_gateways_nor_bystanders(key: str) -> None:
    found = touched(config(model={key: value_for(ServedModelConfig, key)}))
    assert "tell gateways" in found
    if key in {"replicas", "autoscale", "max_queue", "surge_percent"}:
        assert found == {"tell gateways"}
    elif key in {"credits", "handover_s"}:
        assert found == {"tell gateways", "tell replicas"}
    else:
        assert found == {"tell gateways", "restart replicas"}


def test_the_log_level_is_told_and_what_profiles_depend_on_restarts_all_replicas() -> None:
    assert touched(config(log="debug")) == {"tell gateways", "tell replicas", "tell bystanders"}
    for key in ("cache_dir", "profile_repeats"):
        assert touched(config(**{key: CHANGED[key]})) == {"restart replicas", "restart bystanders"}


def test_new_software_restarts_everything() -> None:
    plain = config()
    assert gateway_version(plain, "1") != gateway_version(plain, "2")
    assert replica_version(plain.models[0], plain, "1") != replica_version(plain.models[0], plain, "2")


def test_what_a_part_is_told_is_what_it_was_configured_with() -> None:
    other = config(
        gateway={"max_devices": 7, "device_port": 7001},
        model={"autoscale": AutoscaleConfig(max_replicas=2), "credits": 5},
        log="debug",
    )
    told = gateway_user_config(other)
    assert changed_gateway(config(gateway={"device_port": 7001}).gateway, told["limits"]) == other.gateway
    assert [ServedModelConfig.model_validate(model) for model in told["models"]] == other.models
    started = CloudConfig.model_validate(replica_config(other.models[0], other))
    assert [model.label for model in started.models] == ["net"]
    assert started.models[0].credits == replica_user_config(other.models[0], other)["credits"] == 5
