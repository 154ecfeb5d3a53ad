from __future__ import annotations

import dataclasses

import pytest

from cloud_cluster.dispatch import ModelState
from cloud_cluster.load import LoadMeter, has_moved

IDLE = ModelState(
    ready=1, queued=0, in_flight=0, queue_ms=0.0, wait_ms=0.0, slowdown=1.0, admitted=0, refused=0
)


def state(**changes: float) -> ModelState:
    return dataclasses.replace(IDLE, **changes)  # type: ignore[arg-type]


def meter() -> LoadMeter:
    return LoadMeter("g", ["net"], [3], period_ms=100.0)


def test_reports_are_numbered_and_say_what_is_ready_starting_and_meant() -> None:
    load = meter()
    first = load.report([state(ready=1)], 0.0)
    second = load.report([state(ready=2, queue_ms=5.0, wait_ms=2.5, queued=1, in_flight=2)], 100.0)
    assert (first.sequence, second.sequence) == (1, 2)
    (model,) = second.models
    assert (model.name, model.ready, model.starting, model.target) == ("net", 2, 1, 3)
    assert (model.queue_ms, model.wait_ms, model.queued, model.in_flight) == (5.0, 2.5, 1, 2)


def test_a_report_is_due_every_period_and_earlier_when_the_load_has_moved() -> None:
    load = meter()
    assert load.due_ms([IDLE]) < 0
    load.report([IDLE], 1000.0)
    assert load.due_ms([IDLE]) == 1100.0
    assert load.due_ms([state(ready=0)]) == 1020.0
    assert load.due_ms([state(wait_ms=20.0)]) == 1020.0


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
    load = meter()
    admitted = 0
    for tick in range(60):
        report = load.report([state(admitted=admitted, refused=admitted // 5)], tick * 100.0)
        admitted += 5
    assert report.models[0].admitted_per_s == pytest.approx(50.0, rel=0.05)
    assert report.models[0].refused_per_s == pytest.approx(10.0, rel=0.05)
    for tick in range(60, 120):
        report = load.report([state(admitted=admitted, refused=admitted // 5)], tick * 100.0)
    assert report.models[0].admitted_per_s < 1.0


def test_the_batch_size_follows_the_answers() -> None:
    load = meter()
    assert load.report([IDLE], 0.0).models[0].batch_requests == 1.0
    for _ in range(40):
        load.on_answer(0, 4)
    assert load.report([IDLE], 100.0).models[0].batch_requests == pytest.approx(4.0, rel=0.01)
