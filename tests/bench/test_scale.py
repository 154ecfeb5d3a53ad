from __future__ import annotations

from typing import Any

import pytest

from bench.contract import Bench
from bench.scale_figures import Moments, judge, period, series

PHASES = (10.0, 30.0, 20.0)


def reports(came_s: float = 16.0, left_s: float = 52.0) -> list[dict[str, Any]]:
    """Ten a second: one replica, two from ``came_s`` on, three a second later, one again at ``left_s``."""

    def at(moment_s: float) -> dict[str, Any]:
        busy = 13.0 <= moment_s < left_s
        ready = 1 + (came_s <= moment_s < left_s) + (came_s + 1 <= moment_s < left_s)
        waits = 10.0 <= moment_s < came_s
        return {
            "at_s": moment_s,
            "ready": ready,
            "target": 3 if busy else 1,
            "wait_ms": 800.0 if waits else 50.0,
        }

    return [at(number / 10) for number in range(600)]


def requests(**last: Any) -> list[dict[str, Any]]:
    """Five a second; from the step until the second replica comes, all on the device."""
    asked = []
    for number in range(300):
        at_s = number / 5
        alone = 10.0 <= at_s < 16.0
        asked.append(
            {
                "at_s": at_s,
                "late_s": 0.001,
                "deadline_ms": 1000.0,
                "ms": 700.0 if alone else 300.0,
                "where": "device" if alone else "cloud",
                "cut": 9 if alone else 0,
            }
        )
    return [*asked[:-1], asked[-1] | last]


def bench() -> Bench:
    made = Bench("scale", [])
    made.config = {"phases_s": PHASES, "autoscale": {"target_queue_ms": 200.0}}
    return made


def test_moments_are_when_the_feed_first_says_so() -> None:
    moments = Moments.find(reports(), PHASES)
    assert (moments.before, moments.most) == (1, 3)
    assert moments.wanted_s == 13.0
    assert moments.more_s == 16.0
    assert moments.most_s == 17.0
    assert moments.fewer_s == 52.0


def test_a_good_run_meets_every_target_and_says_how_long_a_replica_took() -> None:
    good = bench()
    judge(good, requests(), reports())
    assert not good.problems
    assert all(target.met for target in good.targets)
    assert good.config["replica_start_s"] == pytest.approx(3.0)
    rows = {row["load"]: row for row in good.rows}
    assert rows["4x, before a replica more"]["on_device"] == 1.0
    assert rows["4x, before a replica more"]["wait_ms"] == 800.0
    assert rows["4x, the last seconds"]["ready"] == 3.0
    assert rows["1x again, the last seconds"]["target"] == pytest.approx(1.4)


def test_a_replica_that_was_wanted_before_the_step_is_timed_from_then() -> None:
    early = bench()
    said = [
        report | {"target": max(report["target"], 2)} if report["at_s"] >= 7.0 else report
        for report in reports()
    ]
    judge(early, requests(), said)
    (first,) = [target for target in early.targets if target.name.startswith("first new replica")]
    assert first.value == pytest.approx(16.0 - 7.0)
    assert early.config["wanted_before_the_step_s"] == pytest.approx(3.0)


def test_what_was_lost_is_told_from_what_the_device_would_not_take() -> None:
    failed = {"error": "DeadlineError: late", "by_agent": False}
    asked = requests()
    for number, changes in ((3, failed), (4, failed | {"by_agent": True}), (5, {"ms": 1500.0})):
        if "error" in changes:
            del asked[number]["ms"]
        asked[number] |= changes
    bad = bench()
    judge(bad, asked, reports())
    values = {target.name: (target.value, target.met) for target in bad.targets}
    assert values["requests lost"] == (1, False)
    assert values["requests that the devices' own limits turned away"] == (1, False)
    assert values["answers after their deadline"] == (1, False)


def test_without_a_new_replica_its_targets_are_missed() -> None:
    stuck = bench()
    judge(stuck, requests(), reports(came_s=100.0, left_s=100.0))
    missed = {target.name for target in stuck.targets if not target.met}
    assert missed >= {
        "first new replica ready after the step, or after it was wanted if that was before",
        "mean wait in the last seconds of the step",
        "replicas intended at the end over those before the step",
    }
    assert stuck.config["replica_start_s"] is None


def test_a_load_that_was_not_offered_or_not_seen_is_not_believed() -> None:
    slow = bench()
    judge(slow, requests(late_s=2.0), reports())
    assert "2.0 s later than meant" in slow.problems[0]
    deaf = bench()
    judge(deaf, requests(), [report for report in reports() if report["at_s"] < 40.0])
    assert "1x again" in deaf.problems[0]


def test_every_second_has_its_cuts() -> None:
    rows = series(requests(), reports(), 60.0)
    assert len(rows) == 60
    assert rows[9]["answers_by_cut"] == {"0": 5}
    assert rows[11]["answers_by_cut"] == {"9": 5}
    assert rows[11]["wait_ms"] == 800.0
    empty = period([], [])
    assert empty["p50_ms"] is None
    assert empty["ready"] is None
