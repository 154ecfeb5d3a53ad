"""What a person asks for becomes the objective and the constraints of plans, or a clear error."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.goals import constraints_of, objective_of, power_of, requested_objective
from shared.codec import Codec
from shared.config import AgentConfig, ModelConfig, ObjectiveConfig, PowerConfig, parse_config
from shared.errors import ConfigError, PlanError
from shared.plan.constraints import Constraints
from shared.plan.energy import Power
from shared.plan.objective import BestFidelity, Energy, Latency, Throughput, Weighted
from shared.plan.radio import LinkType

POWER = Power(4.0, 1.0, LinkType.WIFI)


def _model(**values: Any) -> ModelConfig:
    return parse_config(AgentConfig, {"models": [{"name": "mnist", **values}]}, "here", environ={}).models[0]


@pytest.mark.parametrize(
    ("asked", "objective"),
    [
        ("latency", Latency(None, POWER)),
        ({"minimise": "latency", "energy_mj": 30}, Latency(30.0, POWER)),
        ("energy", Energy(POWER)),
        ({"minimise": "energy", "deadline_ms": 100}, Energy(POWER, 100.0)),
        ({"minimise": "throughput", "rate_hz": 30}, Throughput(30.0)),
        ({"maximise": "fidelity", "deadline_ms": 100}, BestFidelity(100.0)),
        ({"minimise": "weighted", "per_ms": 1, "per_mj": 2}, Weighted(1.0, 2.0, 0.0, POWER)),
    ],
)
def test_every_objective_can_be_asked_for_in_yaml_and_per_request(asked: Any, objective: object) -> None:
    assert objective_of(_model(objective=asked).objective, POWER) == objective
    assert requested_objective(asked, POWER) == objective


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("fastest", "minimise"),
        ({"minimise": "energy", "rate_hz": 3}, "takes deadline_ms, not rate_hz"),
        ({"minimise": "weighted"}, "a price above 0"),
        ("fidelity", "maximise: fidelity takes a deadline_ms"),
        ({"maximise": "fidelity", "minimise": "energy", "deadline_ms": 9}, "no minimise beside it"),
        ({"maximise": "fidelity", "deadline_ms": 9, "rate_hz": 3}, "takes deadline_ms, not rate_hz"),
        ({"minimise": "latency", "energy_mj": -1}, "energy_mj"),
        ({"minimize": "latency"}, "minimize"),
    ],
)
def test_what_is_no_objective_says_why(asked: Any, named: str) -> None:
    with pytest.raises(PlanError, match=named):
        requested_objective(asked, POWER)
    with pytest.raises(ConfigError, match=named):
        _model(objective=asked)


def test_constraints_come_from_the_model() -> None:
    assert constraints_of(_model()) == Constraints()
    config = _model(
        codecs=["uint8+zstd"], min_agreement=0.9, input_never_leaves=True, max_uplink_bytes=9000, cut=3
    )
    assert constraints_of(config) == Constraints((Codec.UINT8_ZSTD,), 0.9, True, 9000, 3)
    assert constraints_of(_model(input_never_leaves="conv1 conv2d")).input_never_leaves == "conv1 conv2d"


def test_a_codec_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"mnist: codecs: no codec 'jpeg'; there are float32"):
        constraints_of(_model(codecs=["jpeg"]))


def test_power_names_the_radio() -> None:
    assert power_of(PowerConfig(busy_w=7, idle_w=2, link="lte")) == Power(7.0, 2.0, LinkType.LTE)
    assert ObjectiveConfig().minimise == "latency"
    with pytest.raises(ConfigError, match="idle_w 9"):
        parse_config(AgentConfig, {"models": [{"name": "m"}], "power": {"idle_w": 9}}, "here", environ={})
