from __future__ import annotations

import dataclasses

import pytest

from cloud_cluster.load import LoadMeter, VersionLoad, has_moved
from cloud_cluster.model_queue import ModelState
from shared.wire import encode_message

IDLE = ModelState(
    ready=1, queued=0, in_flight=0, queue_ms=0.0, wait_ms=0.0, slowdown=1.0, admitted=0, refused=0
)


def state(**changes: float) -> ModelState:
    return dataclasses.replace(IDLE, **changes)  # type: ignore[arg-type]


def load(state: ModelState = IDLE, index: int = 0, target: int = 3, starting: int = 0) -> VersionLoad:
    return VersionLoad(index, "net", state, target, starting)


def meter(budget_bytes_per_s: float = 1e9) -> LoadMeter:
    return LoadMeter("g", 100.0, budget_bytes_per_s)


def test_reports_are_numbered_and_say_what_is_ready_starting_and_meant() -> None:
    load_meter = meter()
    first = load_meter.report([load(state(ready=1), starting=2)], 0.0)
    busy = state(ready=2, queue_ms=5.0, wait_ms=2.5, queued=1, in_flight=2, slowdown=1.5, age_ms=40.0)
    second = load_meter.report([load(busy, starting=1), load(index=7)], 100.0)
    assert (first.sequence, second.sequence) == (1, 2)
    assert (first.gateway, first.period_ms) == ("g", 100.0)
    model, other = second.models
    assert (model.name, model.ready, model.starting, model.target) == ("net", 2, 1, 3)
    assert (model.queue_ms, model.wait_ms, model.queued, model.in_flight) == (5.0, 2.5, 1, 2)
    assert (model.slowdown, model.age_ms) == (1.5, 40.0)
    assert (model.index, other.index) == (0, 7)


def test_a_report_is_due_every_period_and_earlier_when_the_load_has_moved() -> None:
    load_meter = meter()
    assert load_meter.due_ms([load()]) < 0
    load_meter.report([load()], 0.0)
    load_meter.report([load()], 1000.0)
    assert load_meter.due_ms([load()]) == 1100.0
    assert load_meter.due_ms([load(state(ready=0))]) == 1020.0
    assert load_meter.due_ms([load(state(wait_ms=20.0))]) == 1020.0
    # A version more, or one less, is news too.
    assert load_meter.due_ms([load(), load(index=1)]) == 1020.0


def test_a_load_that_moves_all_the_time_is_told_no_faster_than_one_that_rests() -> None:
    load_meter = meter()
    load_meter.report([load()], 0.0)
    load_meter.report([load()], 100.0)
    now_ms, gaps = 100.0, []
    for step in range(8):
        moved = [load(state(wait_ms=50.0 * (step % 2 + 1)))]
        gaps.append(load_meter.due_ms(moved) - now_ms)
        now_ms += gaps[-1]
        load_meter.report(moved, now_ms)
    assert gaps == pytest.approx([20.0, 40.0, 80.0, 100.0, 100.0, 100.0, 100.0, 100.0])
    # After a period of rest news is news again.
    now_ms += 100.0
    load_meter.report(moved, now_ms)
    assert load_meter.due_ms([load(state(ready=0))]) - now_ms == pytest.approx(20.0)


def bytes_per_s(devices: int, waits_ms: list[float]) -> float:
    """What one device receives in ten seconds, with the wait changing every 20 ms."""
    load_meter = LoadMeter("g", 100.0)
    sent = 0
    for tick in range(500):
        loads = [load(state(wait_ms=waits_ms[tick % len(waits_ms)], queued=9, in_flight=2))]
        if load_meter.due_ms(loads, devices) <= tick * 20.0:
            sent += sum(map(len, encode_message(load_meter.report(loads, tick * 20.0, devices))))
    return sent / 10.0


def test_what_the_feed_costs_a_device_does_not_grow_with_the_load_and_falls_with_their_number() -> None:
    idle = bytes_per_s(1, [0.0])
    assert idle == pytest.approx(2500, rel=0.15)
    saturated = bytes_per_s(1, [0.0, 400.0, 50.0, 900.0])
    assert saturated < 1.1 * idle
    costs = [bytes_per_s(devices, [0.0, 400.0]) for devices in (1, 100, 1_000, 10_000)]
    assert costs == sorted(costs, reverse=True)
    assert costs[1] == pytest.approx(idle, rel=0.1)
    for devices, cost in ((1_000, costs[2]), (10_000, costs[3])):
        assert devices * cost < 1.2e6


def test_a_report_says_when_the_next_one_comes_at_the_latest() -> None:
    load_meter = meter(budget_bytes_per_s=100_000)
    first = load_meter.report([load()], 0.0, devices=10)
    assert first.period_ms == 100.0
    second = load_meter.report([load()], 100.0, devices=1000)
    assert second.period_ms > 2000.0
    assert load_meter.due_ms([load()], 1000) == pytest.approx(100.0 + second.period_ms, rel=0.01)
    assert load_meter.due_ms([load(state(ready=0))], 1000) > 2000.0


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        (IDLE, state(wait_ms=4.9), False),
        (IDLE, state(wait_ms=5.1), True),
        (state(wait_ms=100.0), state(wait_ms=119.0), False),
        (state(wait_ms=100.0), state(wait_ms=130.0), True),
        (state(wait_ms=100.0), state(wait_ms=0.0), True),
        (IDLE, state(slowdown=1.1), False),
        (IDLE, state(slowdown=1.5), True),
        (IDLE, state(ready=0), True),
        (IDLE, state(queued=3, in_flight=2), False),
    ],
)
def test_only_what_may_change_a_decision_counts_as_moved(
    old: ModelState, new: ModelState, moved: bool
) -> None:
    assert has_moved(old, new) is moved


def test_rates_are_per_second_and_fade() -> None:
    load_meter = meter()
    admitted = 0
    for tick in range(60):
        report = load_meter.report([load(state(admitted=admitted, refused=admitted // 5))], tick * 100.0)
        admitted += 5
    assert report.models[0].admitted_per_s == pytest.approx(50.0, rel=0.05)
    assert report.models[0].refused_per_s == pytest.approx(10.0, rel=0.05)
    for tick in range(60, 120):
        report = load_meter.report([load(state(admitted=admitted, refused=admitted // 5))], tick * 100.0)
    assert report.models[0].admitted_per_s < 1.0


def test_the_batch_size_follows_the_answers() -> None:
    load_meter = meter()
    assert load_meter.report([load()], 0.0).models[0].batch_requests == 1.0
    for _ in range(40):
        load_meter.on_answer(0, 4)
    assert load_meter.report([load()], 100.0).models[0].batch_requests == pytest.approx(4.0, rel=0.01)
