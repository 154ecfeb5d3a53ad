"""The chaos bench: its checker finds what is wrong in a history, and a short run of the whole is right."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.chaos import main
from bench.chaos_schedule import KINDS, arrivals, schedule
from bench.gate import FAULTS
from bench.history import Verdict, check, read_history
from bench.resident import growth, resident_mb

DEVICE_MS = 40.0


def issued(number: int, at_s: float, source: str = "a", guard: bool = True) -> dict[str, Any]:
    return {
        "event": "issued",
        "id": f"{source}-{number}",
        "source": source,
        "guard": guard,
        "at_s": at_s,
        "deadline_ms": 300.0,
    }


def ended(
    number: int, at_s: float, outcome: str = "split", error: float = 0.0, source: str = "a"
) -> dict[str, Any]:
    return {
        "event": "completed",
        "id": f"{source}-{number}",
        "at_s": at_s,
        "outcome": outcome,
        "error": error,
    }


def judged(*events: dict[str, Any]) -> Verdict:
    return check(events, device_ms=DEVICE_MS, tolerance=1e-4)


def test_a_good_history_has_nothing_against_it() -> None:
    verdict = judged(issued(1, 1.0), ended(1, 1.1), issued(2, 1.2), ended(2, 1.54, "device-fallback", 1e-6))
    assert (verdict.unanswered, verdict.unasked, verdict.repeated) == ([], [], [])
    assert (verdict.wrong, verdict.avoidable) == ([], [])
    figures = verdict.of(guard=True)
    assert (figures["requests"], figures["split"], figures["device-fallback"]) == (2, 0.5, 0.5)
    assert (figures["error"], figures["missed"], figures["overran"]) == (0.0, 0, 0)
    assert figures["worst_ms"] == pytest.approx(40.0)
    assert verdict.of(guard=False)["requests"] == 0


def test_what_was_issued_and_never_ended_is_found() -> None:
    assert judged(issued(1, 1.0), issued(2, 1.0), ended(2, 1.1)).unanswered == ["a-1"]


def test_what_ended_and_was_never_issued_is_found() -> None:
    assert judged(issued(1, 1.0), ended(1, 1.1), ended(7, 1.1)).unasked == ["a-7"]


def test_what_ended_or_was_issued_twice_is_found() -> None:
    assert judged(issued(1, 1.0), ended(1, 1.1), ended(1, 1.2)).repeated == ["a-1"]
    assert judged(issued(1, 1.0), issued(1, 1.0), ended(1, 1.1)).repeated == ["a-1"]


@pytest.mark.parametrize("error", [1e-3, float("nan"), float("inf")])
def test_a_wrong_answer_is_found(error: float) -> None:
    verdict = judged(issued(1, 1.0), ended(1, 1.1, "cloud", error), issued(2, 1.0), ended(2, 1.1))
    assert [each.id for each in verdict.wrong] == ["a-1"]


def test_an_error_and_a_late_answer_are_misses() -> None:
    verdict = judged(
        issued(1, 1.0),
        ended(1, 1.3, "DeadlineError"),
        issued(2, 2.0),
        ended(2, 2.351),
        issued(3, 3.0),
        ended(3, 3.349),
    )
    assert [each.id for each in verdict.avoidable] == ["a-1", "a-2"]
    assert verdict.excused == []
    figures = verdict.of(guard=True)
    assert (figures["missed"], figures["overran"], figures["errors"]) == (2, 1, {"DeadlineError": 1})
    assert verdict.wrong == []


def test_a_miss_that_the_device_alone_could_not_help_is_none_of_ours() -> None:
    """Ten at once are 400 ms of the device's time: the last three would have missed there too."""
    events = [issued(number, 1.0) for number in range(10)]
    events += [ended(number, 1.3, "DeadlineError") for number in range(10)]
    verdict = judged(*events)
    assert [each.id for each in verdict.avoidable] == [f"a-{number}" for number in range(7)]
    assert verdict.of(guard=True)["missed"] == 10


def test_a_miss_while_who_asked_was_late_itself_is_told_apart() -> None:
    lag = {"event": "lag", "source": "a", "at_s": 1.39, "ms": 60.0}
    short = {"event": "lag", "source": "a", "at_s": 2.2, "ms": 19.0}
    other = {"event": "lag", "source": "b", "at_s": 2.3, "ms": 60.0}
    before = {"event": "lag", "source": "a", "at_s": 1.99, "ms": 60.0}
    verdict = judged(
        issued(1, 1.0), lag, ended(1, 1.4), before, issued(2, 2.0), short, other, ended(2, 2.4, "split")
    )
    assert [each.id for each in verdict.avoidable] == ["a-1", "a-2"]
    assert [each.id for each in verdict.excused] == ["a-1"]


def test_halves_with_and_without_the_guard_are_counted_apart() -> None:
    verdict = judged(
        issued(1, 1.0), ended(1, 1.1), issued(1, 2.0, "b", guard=False), ended(1, 2.4, "split", source="b")
    )
    assert verdict.of(guard=True)["missed"] == 0
    assert verdict.of(guard=False)["missed"] == 1


def test_histories_of_several_processes_are_read_as_one(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("".join(json.dumps(event) + "\n" for event in (issued(1, 1.0), ended(1, 3.0))))
    second.write_text(json.dumps(issued(1, 2.0, "b")) + "\n")
    assert [event["at_s"] for event in read_history(first, second)] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("seed", range(5))
def test_a_schedule_has_every_fault_once_and_time_in_between(seed: int) -> None:
    faults = schedule(60.0, seed)
    assert sorted(fault.kind for fault in faults) == sorted(KINDS)
    assert faults == schedule(60.0, seed)
    assert faults != schedule(60.0, seed + 1)
    assert faults[0].at_s > 0
    for fault, following in pairwise(faults):
        assert fault.at_s + fault.lasts_s < following.at_s
    assert faults[-1].kind == "cloud_stop"
    assert faults[-1].at_s + faults[-1].lasts_s == pytest.approx(60.0)
    assert set(FAULTS) <= set(KINDS)


def test_arrivals_are_an_open_loop_of_the_given_rate() -> None:
    moments = list(arrivals(1000.0, 20.0, seed=3))
    assert len(moments) == pytest.approx(20_000, rel=0.05)
    assert moments == sorted(moments)
    assert moments == list(arrivals(1000.0, 20.0, seed=3))


def test_growth_is_that_after_warming_up() -> None:
    assert growth([10.0, 90.0, 99.0, *[100.0] * 9]) == 0.0
    assert growth(
        [100.0] * 3 + [100.0, 100.0, 100.0, 105.0, 110.0, 115.0, 120.0, 120.0, 120.0]
    ) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="say nothing"):
        growth([1.0, 2.0])
    held_mb = resident_mb(os.getpid())
    assert held_mb is not None
    assert held_mb > 1.0
    assert resident_mb(2**30) is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_fault_on_real_processes_costs_no_outcome_and_makes_no_answer_wrong(tmp_path: Path) -> None:
    """Misses are not asserted: they depend on how much of the machine is left for this."""
    report, history = tmp_path / "chaos.json", tmp_path / "history.jsonl"
    arguments = [
        "--quick",
        "--seconds",
        "60",
        "--seed",
        "7",
        "--json",
        str(report),
        "--history",
        str(history),
    ]
    assert main(arguments) == 0
    document = json.loads(report.read_text())
    measured = {target["name"]: target["value"] for target in document["targets"]}
    assert measured["requests without exactly one outcome"] == 0
    assert measured["wrong answers"] == 0
    assert sorted(fault["fault"] for fault in document["config"]["faults"]) == sorted(KINDS)
    (row,) = document["rows"]
    assert row["split"] + row["cloud"] > 0
    assert row["device"] + row["device-fallback"] > 0
    counters = document["config"]["counters"]
    ended = sum(
        counters[kind] for kind in ("completed_by_cloud", "completed_by_device", "failed", "cancelled")
    )
    assert counters["submitted"] == ended
    events = read_history(history)
    faults = [event for event in events if event["event"] == "fault"]
    assert len(faults) == len(KINDS)
    assert len([event for event in events if event["event"] == "issued"]) == row["requests"]
