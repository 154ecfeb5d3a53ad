from __future__ import annotations

import pytest

from edge_agent.caution import Caution


def test_requests_that_were_late_together_are_one_failure() -> None:
    """Twenty under way when a replica stops must not keep the cloud away for twenty failures' time."""
    one, many = Caution(), Caution()
    one.on_late(300.0, False, sent_ms=0.0, now_ms=1000.0)
    for number in range(20):
        many.on_late(300.0, False, sent_ms=10.0 * number, now_ms=1000.0 + number)
    for later_ms in (2_000.0, 5_000.0, 20_000.0):
        assert many.penalty_ms(1000.0 + later_ms) == one.penalty_ms(1000.0 + later_ms)


def test_requests_that_were_late_one_after_the_other_are_as_many_failures() -> None:
    caution = Caution()
    caution.on_late(300.0, False, sent_ms=0.0, now_ms=1000.0)
    assert caution.penalty_ms(5_000.0) == pytest.approx(150.0)
    for number in range(1, 4):
        caution.on_late(300.0, False, sent_ms=1000.0 * number, now_ms=1000.0 * number + 500.0)
    # Four failures: what took four seconds to halve takes thirty-two.
    assert caution.penalty_ms(35_500.0) == pytest.approx(150.0)


def test_refusals_that_came_together_are_one() -> None:
    caution = Caution()
    for number in range(20):
        caution.on_refused(0.0, 1000.0 + number)
    assert caution.blocked_until_ms == pytest.approx(1250.0)
    caution.on_refused(0.0, 1300.0)
    assert caution.blocked_until_ms == pytest.approx(1800.0)


def test_the_longest_time_that_was_asked_for_counts() -> None:
    caution = Caution()
    caution.on_refused(0.0, 1000.0)
    caution.on_refused(5_000.0, 1001.0)
    caution.on_refused(100.0, 1002.0)
    assert caution.blocked_until_ms == pytest.approx(6001.0)
