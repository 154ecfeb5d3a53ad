"""Uplinks that change: that traces are read back as made, and what a payload takes on one."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.shaping import Trace, load_trace
from bench.uplinks import SYNTHETIC, Clock, write_trace

DEAD_BETWEEN = Trace(((1.0, 8e6), (2.0, 0.0), (1.0, 4e6)))
"""A megabyte in the first second, nothing for two, half a megabyte in the last, and again."""


def passed(clock: Clock, ready_s: float, payload_bytes: float) -> float:
    return float(clock.passed_s(np.array([ready_s]), np.array([payload_bytes]))[0])


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_trace_of_ours_is_as_long_as_asked_and_reads_back(name: str, tmp_path: Path) -> None:
    trace = SYNTHETIC[name](24.0, random.Random(3))
    assert trace.duration_s == pytest.approx(24.0)
    read = load_trace(write_trace(trace, tmp_path / "trace"))
    for moment in np.linspace(0.01, 23.9, 200):
        assert read.at(float(moment))[0] == pytest.approx(trace.at(float(moment))[0], rel=1e-4, abs=2.0)


def test_markov_is_the_same_for_one_seed_and_another_for_another() -> None:
    one, same, other = (SYNTHETIC["markov"](30.0, random.Random(seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_a_tunnel_has_dead_seconds_and_a_way_back() -> None:
    rates = [bps for _, bps in SYNTHETIC["tunnel"](30.0, random.Random(0)).steps]
    assert 0.0 in rates
    assert rates[-1] > 0


@pytest.mark.parametrize(
    ("ready_s", "payload_bytes", "through_s"),
    [
        (0.0, 0.0, 0.0),
        (0.0, 500_000.0, 0.5),
        (0.5, 500_000.0, 1.0),
        (0.5, 750_000.0, 3.5),  # waits out the dead stretch, then at half the rate
        (2.0, 0.0, 2.0),
        (2.0, 500_000.0, 4.0),
        (3.5, 750_000.0, 4.5),  # into the trace's second turn
    ],
)
def test_bytes_pass_when_the_trace_has_carried_them(
    ready_s: float, payload_bytes: float, through_s: float
) -> None:
    assert passed(Clock(DEAD_BETWEEN, 20.0), ready_s, payload_bytes) == pytest.approx(through_s, abs=1e-5)


def test_what_does_not_pass_within_sight_never_does() -> None:
    assert passed(Clock(DEAD_BETWEEN, 4.0), 0.0, 1e9) == np.inf


@given(
    st.lists(st.tuples(st.floats(0.1, 3.0), st.sampled_from([0.0, 1e5, 2e6, 5e7])), min_size=1, max_size=6),
    st.floats(0.0, 5.0),
    st.floats(1.0, 1e6),
)
def test_what_has_passed_is_what_the_rates_add_up_to(
    steps: list[tuple[float, float]], ready_s: float, payload_bytes: float
) -> None:
    trace = Trace((*steps, (0.5, 1e6)))
    through_s = passed(Clock(trace, 200.0), ready_s, payload_bytes)
    assert through_s >= ready_s
    if through_s == np.inf:
        return
    carried, at_s = 0.0, ready_s
    while at_s < through_s - 1e-9:
        bps, left_s = trace.at(at_s)
        step_s = min(left_s + 1e-9, through_s - at_s)
        carried += bps * step_s / 8
        at_s += step_s
    assert carried == pytest.approx(payload_bytes, rel=1e-3, abs=20)
