"""The sweep: the same networks for the same seed, and one sample for every unit of what it ran."""

from __future__ import annotations

import itertools

import pytest
import torch

from shared.errors import ConfigError
from shared.plan.predict import MIN_SAMPLES, PredictorKey, Sample, fit_predictor
from shared.plan.sweep import run_sweep, sweep_size
from shared.plan.sweep_networks import FAMILIES, SweepNetwork, sweep_networks

LEAST = 0.01
"""One network of each family."""


def shapes(network: SweepNetwork) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in (*network.args, *network.module.parameters())]


def test_a_seed_fixes_the_networks_and_their_weights() -> None:
    for first, again, other in zip(
        sweep_networks(3, LEAST), sweep_networks(3, LEAST), sweep_networks(4, LEAST), strict=True
    ):
        assert first.name == again.name == other.name
        for one, two in zip(first.module.parameters(), again.module.parameters(), strict=True):
            assert torch.equal(one, two)
        for one, two in zip(first.args, again.args, strict=True):
            assert torch.equal(one, two)
    first_shapes = [shapes(network) for network in sweep_networks(3, LEAST)]
    assert first_shapes != [shapes(network) for network in sweep_networks(4, LEAST)]


def test_drawing_networks_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(sweep_networks(0, LEAST))
    assert torch.equal(torch.rand(3), expected)


def test_a_larger_share_holds_more_of_every_family_in_a_mixed_order() -> None:
    names = [network.name for network in sweep_networks(0, 0.2)]
    assert len(names) == sweep_size(0.2)
    assert {name.partition("-")[0] for name in names} == set(FAMILIES)
    assert {name.partition("-")[0] for name in names[: len(FAMILIES)]} == set(FAMILIES)
    assert sweep_size() == sum(count for _, count in FAMILIES.values())


@pytest.fixture(scope="module")
def swept() -> list[Sample]:
    """Each family's first network, measured by a clock on which every unit takes 2 ms exactly."""
    ticks = itertools.count()
    return run_sweep(share=LEAST, repeats=3, budget_s=1e9, clock=lambda: next(ticks) * 2e-3)


@pytest.mark.slow
def test_every_unit_becomes_a_sample_of_what_the_clock_said(swept: list[Sample]) -> None:
    assert all(sample.ms == pytest.approx(2.0) for sample in swept)
    types = {sample.features.type for sample in swept}
    assert {"conv2d", "conv2d 1x1", "linear 1 row", "bmm", "layer_norm", "max_pool2d", "embedding"} <= types
    families = {sample.features.family for sample in swept}
    assert {"convolution", "product", "recurrent", "attention", "pool", "normalisation", "move"} <= families


@pytest.mark.slow
def test_constant_times_are_learnt_as_constants(swept: list[Sample]) -> None:
    predictor = fit_predictor(swept, PredictorKey("cpu", 1, torch.__version__))
    assert all(fit.samples >= MIN_SAMPLES for fit in predictor.by_type.values())
    assert predictor.overall.coefficients[-1] == pytest.approx(2.0)
    assert all(predictor.ms(sample.features) == pytest.approx(2.0, rel=0.01) for sample in swept)


def test_a_sweep_out_of_budget_ends_after_the_network_at_hand() -> None:
    seen: list[tuple[int, int, str]] = []
    ticks = itertools.count()
    samples = run_sweep(
        share=LEAST,
        repeats=1,
        budget_s=0.0,
        progress=lambda *step: seen.append(step),
        clock=lambda: float(next(ticks)),
    )
    total = sweep_size(LEAST)
    assert [step[:2] for step in seen] == [(0, total), (total, total)]
    assert samples


def test_a_device_that_is_not_there_is_refused() -> None:
    device = f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ConfigError, match=device):
        run_sweep(device, share=LEAST)
