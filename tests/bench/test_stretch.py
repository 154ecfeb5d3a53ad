from __future__ import annotations

import time

import pytest
import torch

from bench.stretch import StretchedRunner, stretched
from edge_agent.runner import Runner, Work
from shared.codec import Codec
from shared.config import ModelSource
from shared.models import resolve


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds slept, without sleeping them; the clock moves as if they had been."""
    taken: list[float] = []
    real = time.perf_counter
    monkeypatch.setattr(time, "sleep", taken.append)
    monkeypatch.setattr(time, "perf_counter", lambda: real() + sum(taken))
    return taken


async def test_every_section_of_compute_takes_the_factor_longer(naps: list[float]) -> None:
    model = resolve(ModelSource(name="mnist"))
    runner = StretchedRunner(5.0, "cpu", 1)
    graph = await runner.load("mnist", model.captured)
    args, kwargs = model.example
    cut = graph.cuts[2]
    codecs = (Codec.FLOAT32,) * len(cut.live)
    prefix = await runner.prefix("mnist", graph.flatten(args, kwargs), cut, codecs, Work())
    assert prefix.encode_ms > 0
    # What is reported holds the sleep: four fifths of all compute and encoding are slept.
    assert sum(naps) * 1000 == pytest.approx((prefix.compute_ms + prefix.encode_ms) * 0.8, rel=1e-2)

    before = len(naps)
    answer = await runner.finish("mnist", cut, prefix, Work())
    assert sum(naps[before:]) * 1000 == pytest.approx(answer.compute_ms * 0.8, rel=1e-2)
    await runner.close()

    with torch.no_grad():
        plain = Runner("cpu", 1)
        await plain.load("mnist", model.captured)
        expected = await plain.prefix("mnist", graph.flatten(args, kwargs), graph.cuts[-1], (), Work())
        await plain.close()
    [slot] = graph.outputs
    assert torch.equal(answer.outputs[slot], expected.outputs[slot])


def test_a_stretched_profile_has_its_own_name_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = StretchedRunner(6.0)
    assert runner.profile_device == "cpu stretched 6x"
    monkeypatch.setattr(time, "perf_counter", lambda: 10.0)
    started = runner.profile_clock()
    monkeypatch.setattr(time, "perf_counter", lambda: 10.5)
    assert runner.profile_clock() - started == pytest.approx(3.0)


def test_compute_cannot_be_shortened() -> None:
    with pytest.raises(ValueError, match="stretched, not shortened"):
        stretched(0.5)("cpu", 1)
    assert stretched(1.0)("cpu", 1).factor == 1.0
