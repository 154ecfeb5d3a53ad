"""float16 is taken where the answers are shown to stay the same, and the answers are float32 all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cloud_cluster.curves import BatchCurves
from cloud_cluster.precision import (
    FLOAT16,
    FLOAT32,
    Precision,
    choose_precision,
    computed_in,
    decided,
    measured_fidelity,
)
from cloud_cluster.torch_executor import TorchExecutor
from shared.config import ServedModelConfig
from shared.errors import ConfigError
from shared.graph import Program, load
from shared.graph.capture import capture
from shared.plan.gate import Fidelity
from shared.tensor import DType
from tests.cloud_cluster.batch_peers import Served, run

CPU = torch.device("cpu")


class Classifier(torch.nn.Module):
    """Ten classes, the best of which wins by ``ahead``."""

    def __init__(self, ahead: float) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            self.linear.weight.copy_(torch.randn(10, 64, generator=generator))
            self.linear.bias.copy_(torch.arange(10.0) * ahead)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features)


class Overflowing(torch.nn.Module):
    """Right in float32, beyond what float16 holds."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        large = features @ (torch.eye(64) * 1e6)
        return large[:, :10] - large[:, 10:20]


def program(module: torch.nn.Module) -> Program:
    # Not fused: what oneDNN has packed stays in float32.
    return load(capture(module.eval(), (torch.randn(2, 64),), name="net"), mode="exact")


def samples(count: int = 64) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [[torch.rand(1, 64, generator=generator)] for _ in range(count)]


def model(**keys: Any) -> ServedModelConfig:
    return ServedModelConfig.model_validate({"name": "net", "device": "cuda", **keys})


def test_a_robust_network_is_found_to_agree_and_one_that_overflows_not_to() -> None:
    fidelity = measured_fidelity(program(Classifier(ahead=100.0)), samples())
    assert fidelity.agreement == 1.0
    assert fidelity.samples == 64
    assert 0 < fidelity.error < 1e-2, "it was computed in another precision"
    assert fidelity.shown >= 0.99
    assert measured_fidelity(program(Overflowing()), samples()).shown < 0.9


def test_auto_takes_what_is_shown_and_float16_insists() -> None:
    good, bad = Fidelity(1.0, 1e-3, 0.995, 1.0, 64), Fidelity(0.97, 1e-1, 0.9, 1.0, 64)
    assert decided(model(precision="auto"), good) == Precision(torch.float16, good)
    assert decided(model(precision="float16"), good).name == "float16"
    assert decided(model(precision="auto"), bad) == Precision(torch.float32, bad)
    assert decided(model(precision="auto", min_agreement=0.9), bad).name == "float16"
    with pytest.raises(ConfigError, match=r"shown to agree with float32 on 0\.900 .* precision: auto"):
        decided(model(precision="float16"), bad)


def test_people_are_told_what_was_measured() -> None:
    said = str(Precision(torch.float32, Fidelity(0.97, 1e-1, 0.9, 1.0, 64)))
    assert said == "float32; float16 agrees on 0.970 of 64 inputs, 0.900 is shown"
    assert str(FLOAT32) == "float32"
    assert len(said) <= 128, "it travels as a name"


def test_a_cpu_computes_in_float32_and_says_so_when_it_is_asked_for_more() -> None:
    net = program(Classifier(1.0))
    assert choose_precision(net, model(precision="auto", device="cpu"), []) == FLOAT32
    with pytest.raises(ValueError, match="float16 needs device: cuda; on a CPU it is slower"):
        model(precision="float16", device="cpu")


def test_an_executor_computes_in_its_precision_and_answers_in_float32() -> None:
    net = program(Classifier(ahead=100.0))
    curves = BatchCurves.flat((1.0,) * len(net.graph.units))
    executor = TorchExecutor(net, curves, precision=FLOAT16)
    half = Served(net, samples(1)[0], executor)
    cut = net.graph.cuts[0]
    (answer,) = run(half, [half.message(cut)])
    assert answer.outcome.tensors[0].dtype == DType.FLOAT32
    (got,), (exact,) = half.tensors(answer, cut, 1), half.alone(cut, 1, 0)
    with computed_in(FLOAT16, CPU), torch.inference_mode():
        (expected,) = half.alone(cut, 1, 0)
    assert expected.dtype == torch.float16
    assert torch.equal(got, expected.float())
    assert not torch.equal(got, exact)
