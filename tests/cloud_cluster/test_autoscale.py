"""The number of replicas follows the load, without haste when it falls."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_cluster.autoscale import (
    Load,
    ServePolicy,
    Trend,
    desired_replicas,
    load_of,
    needed_replicas,
    predicted_wait_ms,
)
from shared.config import AutoscaleConfig

CONFIG = AutoscaleConfig(min_replicas=0, max_replicas=8, target_queue_ms=50)

loads = st.builds(
    Load,
    ready=st.integers(1, 8),
    offered=st.floats(0, 20),
    request_ms=st.floats(0, 500),
    wait_ms=st.floats(0, 5000),
)
configs = st.builds(
    lambda least, more, delays: AutoscaleConfig(
        min_replicas=least,
        max_replicas=max(least + more, 1),
        target_queue_ms=50,
        upscale_delay_s=delays[0],
        downscale_delay_s=delays[1],
    ),
    st.integers(0, 3),
    st.integers(0, 6),
    st.tuples(st.floats(0, 10), st.floats(0, 60)),
)


def stats(**values: float) -> dict[str, float]:
    return {"busy": 0.0, "finished_per_s": 0.0, "arriving_per_s": 0.0, "wait_ms": 0.0, **values}


def test_what_the_replicas_record_amounts_to_one_load() -> None:
    load = load_of(
        [
            stats(busy=0.9, finished_per_s=45, arriving_per_s=160, wait_ms=70),
            stats(busy=0.7, finished_per_s=35, arriving_per_s=158, wait_ms=60),
        ]
    )
    assert load is not None
    assert (load.ready, load.wait_ms) == (2, 70)
    assert load.request_ms == pytest.approx(20)
    # 160 requests a second of 20 ms each would keep 3.2 replicas busy, whatever the two could finish.
    assert load.offered == pytest.approx(3.2)


def test_no_records_are_no_knowledge_and_idle_replicas_are_no_load() -> None:
    assert load_of([]) is None
    idle = load_of([stats()])
    assert idle is not None
    assert needed_replicas(idle, 50, 8) == 0
    assert desired_replicas(None, 3, CONFIG, Trend(False, 0, 0), 1e6) == (3, None)


def test_one_replicas_wait_is_that_of_the_textbook() -> None:
    assert predicted_wait_ms(0.8, 1, 20) == pytest.approx(80)
    assert predicted_wait_ms(0, 3, 20) == 0
    assert predicted_wait_ms(2, 2, 20) == math.inf
    # M/M/2 at 80 %: the exact wait is 1.78 service times.
    assert predicted_wait_ms(1.6, 2, 20) == pytest.approx(1.78 * 20, rel=0.02)


def test_replicas_are_asked_for_before_anything_waits() -> None:
    busy = Load(ready=1, offered=0.8, request_ms=20, wait_ms=0)
    assert predicted_wait_ms(0.8, 1, 20) > CONFIG.target_queue_ms
    assert needed_replicas(busy, CONFIG.target_queue_ms, 8) == 2
    assert needed_replicas(Load(1, 0.5, 20, 0), CONFIG.target_queue_ms, 8) == 1
    assert needed_replicas(Load(1, 4.0, 20, 0), CONFIG.target_queue_ms, 8) == 5


def test_a_wait_past_its_target_asks_for_more_at_most_twice_as_many() -> None:
    assert needed_replicas(Load(2, 0.5, 20, 51), 50, 8) == 3
    assert needed_replicas(Load(2, 0.5, 20, 5000), 50, 8) == 4


@given(loads, st.integers(1, 8), st.floats(0, 5000), st.floats(0, 20))
def test_more_wait_or_more_work_never_means_fewer(
    load: Load, most: int, wait_ms: float, offered: float
) -> None:
    def needed(wait_ms: float, offered: float) -> int:
        return needed_replicas(Load(load.ready, offered, load.request_ms, wait_ms), 50, most)

    assert 0 <= needed(load.wait_ms, load.offered) <= most
    if wait_ms >= load.wait_ms:
        assert needed(wait_ms, load.offered) >= needed(load.wait_ms, load.offered)
    if offered >= load.offered:
        assert needed(load.wait_ms, offered) >= needed(load.wait_ms, load.offered)


@given(configs, st.lists(st.tuples(loads | st.none(), st.floats(0, 5)), max_size=60), st.integers(0, 12))
def test_the_target_stays_in_its_bounds_and_falls_only_after_the_delay(
    config: AutoscaleConfig, steps: list[tuple[Load | None, float]], target: int
) -> None:
    now_s, trend = 0.0, None
    above_s: float | None = None
    for load, pause_s in steps:
        now_s += pause_s
        before = target
        target, trend = desired_replicas(load, before, config, trend, now_s)
        assert config.min_replicas <= target <= config.max_replicas
        in_bounds = config.min_replicas <= before <= config.max_replicas
        need = load and needed_replicas(load, config.target_queue_ms, config.max_replicas)
        # The last time at which as many as before, or more, were needed, or nobody knew.
        if above_s is None or not in_bounds or need is None or need >= before:
            above_s = now_s
        if target < before and in_bounds:
            assert now_s - above_s >= config.downscale_delay_s
        if target != before:
            above_s = now_s


@given(configs, loads, st.integers(1, 8))
def test_under_a_steady_load_the_target_settles(config: AutoscaleConfig, load: Load, target: int) -> None:
    trend = None
    targets = []
    for tick in range(400):
        target, trend = desired_replicas(load, target, config, trend, tick * 0.5)
        targets.append(target)
    moves = [(old, new) for old, new in itertools.pairwise(targets) if old != new]
    assert len(moves) <= 1


def test_a_short_peak_starts_nothing_and_a_short_lull_stops_nothing() -> None:
    peak, lull = Load(1, 3.0, 20, 0), Load(4, 0.1, 20, 0)
    target, trend = desired_replicas(peak, 1, CONFIG, None, 0.0)
    assert (target, trend) == (1, Trend(True, 0.0, 4))
    assert desired_replicas(peak, 1, CONFIG, trend, 1.9)[0] == 1
    assert desired_replicas(peak, 1, CONFIG, trend, 2.0) == (4, None)

    target, trend = desired_replicas(lull, 4, CONFIG, None, 0.0)
    assert (target, trend) == (4, Trend(False, 0.0, 1))
    # In between three were needed: that many stay.
    target, trend = desired_replicas(Load(4, 2.0, 20, 0), 4, CONFIG, trend, 15.0)
    assert (target, trend) == (4, Trend(False, 0.0, 3))
    assert desired_replicas(lull, 4, CONFIG, trend, 30.0) == (3, None)


def test_without_work_the_last_replica_leaves_too_where_that_is_allowed() -> None:
    idle = Load(1, 0.0, 0.0, 0.0)
    _, trend = desired_replicas(idle, 1, CONFIG, None, 0.0)
    assert desired_replicas(idle, 1, CONFIG, trend, 30.0)[0] == 0
    kept = AutoscaleConfig(min_replicas=1, max_replicas=8)
    assert desired_replicas(idle, 1, kept, trend, 1e6)[0] == 1


def context(metrics: dict[str, dict[str, float]], target: int, state: dict[str, Any], now_s: float) -> Any:
    return SimpleNamespace(
        aggregated_metrics=metrics, target_num_replicas=target, policy_state=state, current_time=now_s
    )


def test_serve_calls_the_policy_and_keeps_its_memory() -> None:
    policy = ServePolicy(**CONFIG.model_dump())
    metrics = {
        "busy": {"a": 1.0, "starting": 0.0},
        "finished_per_s": {"a": 50.0},
        "arriving_per_s": {"a": 150.0},
        "wait_ms": {"a": 30.0},
        "ray's own": {"a": 1.0},
    }
    target, state = policy(context(metrics, 1, {}, 100.0))
    assert target == 1
    assert state == {"trend": {"up": True, "since_s": 100.0, "most": 4}}
    assert policy(context(metrics, 1, {**state, "__internal": 1}, 102.0)) == (4, {})
    assert policy(context({}, 4, state, 200.0)) == (4, {})
