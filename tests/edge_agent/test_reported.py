from __future__ import annotations

import random

import pytest

from edge_agent.load_merge import MergedLoad
from edge_agent.reported import ReportedLoad
from shared.wire.messages import ModelLoad


def load(wait_ms: float, said_ms: float) -> MergedLoad:
    load = ModelLoad(
        name="net", ready=1, starting=0, target=1, queue_ms=wait_ms, wait_ms=wait_ms, slowdown=1.0
    )
    return MergedLoad(load, said_ms, said_ms + 300.0)


def test_a_queue_that_always_sways_is_averaged() -> None:
    rng, reported = random.Random(1), ReportedLoad()
    seen = []
    for index in range(200):
        reported.on_load(load(rng.choice((0.0, 50.0)), 100.0 * index))
        seen.append(reported.wait_ms(True))
    late = seen[50:]
    assert sum(late) / len(late) == pytest.approx(25, abs=5)
    assert sum(abs(wait - 25) for wait in late) / len(late) < 12.5  # half of what single reports miss by


@pytest.mark.parametrize("wait_ms", [0.0, 400.0])
def test_a_report_that_is_news_is_believed_at_once(wait_ms: float) -> None:
    rng, reported = random.Random(2), ReportedLoad()
    for index in range(50):
        reported.on_load(load(100.0 + rng.uniform(-5, 5), 100.0 * index))
    reported.on_load(load(wait_ms, 5000.0))
    assert reported.wait_ms(True) == wait_ms
    reported.on_load(load(100.0, 5100.0))
    assert reported.wait_ms(True) == 100.0


def test_work_of_our_own_that_is_done_is_not_waited_for() -> None:
    reported = ReportedLoad()
    reported.on_load(load(30.0, 1000.0))
    reported.on_answered(latency_ms=100.0, cloud_ms=30.0, now_ms=1010.0)
    assert reported.wait_ms(True) == 0.0
    for index in range(1, 20):
        reported.on_load(load(30.0, 1000.0 + 100 * index))
        reported.on_answered(latency_ms=100.0, cloud_ms=30.0, now_ms=1010.0 + 100 * index)
    assert reported.wait_ms(True) == pytest.approx(0.0, abs=1e-6)


def test_a_stale_report_means_an_unknown_wait_and_never_none() -> None:
    reported = ReportedLoad()
    assert reported.wait_ms(False) > 0
    reported.on_load(load(3.0, 0.0))
    assert reported.is_fresh(200.0)
    assert not reported.is_fresh(400.0)
    assert reported.wait_ms(False) > reported.wait_ms(True)
