"""From the arguments of ``serve run cloud_cluster:app key=value ...`` to a checked configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.config import CloudConfig, load_config, parse_config
from shared.errors import ConfigError

__all__ = ["DEFAULT_MODELS", "config_from_arguments"]

DEFAULT_MODELS = ("efficientnet-lite0",)
"""What ``make demo`` asks for; its weights come with the ``demo`` extra."""


def config_from_arguments(args: Mapping[str, Any]) -> CloudConfig:
    """``config`` names a YAML file; any other key is one of :class:`shared.config.CloudConfig`.

    ``models`` may also be a list of zoo names, or such names in one string with commas.  Without models,
    those of the demo are served.  Raises ConfigError.
    """
    values = dict(args)
    path = values.pop("config", None)
    if path is not None:
        if values:
            raise ConfigError(
                f"config={path} cannot be mixed with {', '.join(sorted(values))}; write those into the file"
            )
        return load_config(CloudConfig, path)
    values["models"] = _models(values.get("models", DEFAULT_MODELS))
    return parse_config(CloudConfig, values, "the application's arguments")


def _models(models: Any) -> Any:
    if isinstance(models, str):
        models = [name.strip() for name in models.split(",") if name.strip()]
    if not isinstance(models, list | tuple):
        return models
    return [{"name": model} if isinstance(model, str) else model for model in models]
