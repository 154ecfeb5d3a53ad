"""From what a person asks of plans, in YAML or in a request, to the objective and the constraints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shared.codec import Codec
from shared.config import ModelConfig, ObjectiveConfig, PowerConfig
from shared.errors import ConfigError, PlanError
from shared.plan.constraints import Constraints
from shared.plan.energy import Power
from shared.plan.objective import BestFidelity, Energy, Latency, Objective, Throughput, Weighted
from shared.plan.radio import LinkType

__all__ = ["constraints_of", "objective_of", "power_of", "requested_objective"]


def power_of(config: PowerConfig) -> Power:
    return Power(config.busy_w, config.idle_w, LinkType(config.link))


def objective_of(config: ObjectiveConfig, power: Power) -> Objective:
    if config.maximise is not None and config.deadline_ms is not None:
        return BestFidelity(config.deadline_ms)
    match config.minimise:
        case "latency":
            return Latency(config.energy_mj, power)
        case "energy":
            return Energy(power, config.deadline_ms)
        case "throughput":
            return Throughput(config.rate_hz)
        case "weighted":
            return Weighted(config.per_ms or 0.0, config.per_mj or 0.0, config.per_uplink_kb or 0.0, power)


def requested_objective(asked: str | Mapping[str, Any], power: Power) -> Objective:
    """That of one request: a name, or the keys of :class:`ObjectiveConfig`.  Raises PlanError."""
    try:
        return objective_of(ObjectiveConfig.model_validate(asked), power)
    except ValidationError as error:
        reasons = "; ".join(
            ": ".join(
                filter(None, (".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")))
            )
            for item in error.errors()
        )
        raise PlanError(f"objective {asked!r} is not one: {reasons}") from None


def constraints_of(config: ModelConfig) -> Constraints:
    """Raises ConfigError for a codec that does not exist."""
    try:
        codecs = None if config.codecs is None else tuple(Codec.from_label(label) for label in config.codecs)
    except ValueError as error:
        raise ConfigError(f"model {config.name}: codecs: {error}") from None
    return Constraints(
        codecs=codecs,
        min_agreement=config.min_agreement,
        input_never_leaves=config.input_never_leaves,
        max_uplink_bytes=config.max_uplink_bytes,
        cut=config.cut,
    )
