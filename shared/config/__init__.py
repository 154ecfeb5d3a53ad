"""What a person writes in YAML, checked by pydantic: unknown keys are errors, units are in the names.

Any value can be overridden by the environment: ``SUTURE_`` and the path of keys joined by ``__``, e.g.
``SUTURE_CLOUD__GATEWAY=tcp://10.0.0.5:5555`` for ``cloud: {gateway: ...}``.
"""

from __future__ import annotations

from shared.config.agent import AgentConfig, CloudLinkConfig, LinkKeysConfig, MetricsConfig, PowerConfig
from shared.config.cloud import (
    AutoscaleConfig,
    CloudConfig,
    GatewayConfig,
    GatewayKeysConfig,
    ServedModelConfig,
)
from shared.config.load import load_config, parse_config
from shared.config.model import CalibrationConfig, ModelConfig, ModelSource, ObjectiveConfig

__all__ = [
    "AgentConfig",
    "AutoscaleConfig",
    "CalibrationConfig",
    "CloudConfig",
    "CloudLinkConfig",
    "GatewayConfig",
    "GatewayKeysConfig",
    "LinkKeysConfig",
    "MetricsConfig",
    "ModelConfig",
    "ModelSource",
    "ObjectiveConfig",
    "PowerConfig",
    "ServedModelConfig",
    "load_config",
    "parse_config",
]
