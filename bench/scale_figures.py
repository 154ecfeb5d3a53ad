"""From what became of requests, and what the load feed said meanwhile, to the figures of a load step.

A request is a mapping with ``at_s``, ``late_s`` (asked later than meant), and then ``ms``, ``where`` and
``cut``, or ``error`` and ``by_agent`` where the device's own limits turned it away.  A report has ``at_s``,
``ready``, ``target`` and ``wait_ms``.  Both are in the order of time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.contract import Bench

__all__ = ["Moments", "judge", "period", "series"]

Row = Mapping[str, Any]

READY_WITHIN_S = 15.0
SETTLED_S = 10.0
MOST_LATE_S = 1.0
"""A generator that asks so much later than it meant to has not offered that load."""

_SAME_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Moments:
    """When things changed, in seconds; None for what did not happen.

    ``more_s`` is when there was a replica more than before the step, ``wanted_s`` since when that had been
    meant to be, maybe since before the step, ``most_s`` when the most were there, ``fewer_s`` when after the
    step there were as few as before.
    """

    step_s: float
    back_s: float
    end_s: float
    before: int
    most: int
    wanted_s: float | None
    more_s: float | None
    most_s: float | None
    fewer_s: float | None

    @classmethod
    def find(cls, reports: Sequence[Row], phases_s: Sequence[float]) -> Moments:
        before_s, step_s, after_s = phases_s
        back_s = before_s + step_s
        earlier, during = _within(reports, 0.0, before_s), _within(reports, before_s, back_s)
        before = earlier[-1]["ready"] if earlier else 0
        most = max((report["ready"] for report in during), default=0)
        later = _within(reports, back_s, back_s + after_s)
        more_s = _first(during, lambda report: report["ready"] > before)
        wanted_s = None
        for report in () if more_s is None else _within(reports, 0.0, more_s):
            if report["target"] <= before:
                wanted_s = None
            elif wanted_s is None:
                wanted_s = report["at_s"]
        return cls(
            before_s,
            back_s,
            back_s + after_s,
            before,
            most,
            wanted_s,
            more_s,
            _first(during, lambda report: report["ready"] == most),
            _first(later, lambda report: report["ready"] <= before),
        )


def judge(bench: Bench, requests: Sequence[Row], reports: Sequence[Row]) -> None:
    """Rows by period, the run by second, and the targets."""
    moments = Moments.find(reports, bench.config["phases_s"])
    target_ms = bench.config["autoscale"]["target_queue_ms"]
    more_s = moments.more_s if moments.more_s is not None else moments.back_s
    settled_s = max(moments.back_s - SETTLED_S, moments.most_s or moments.step_s)
    periods = {
        "1x": (0.0, moments.step_s),
        "4x, before a replica more": (moments.step_s, more_s),
        "4x, the last seconds": (settled_s, moments.back_s),
        "1x again": (moments.back_s, moments.end_s),
        "1x again, the last seconds": (max(moments.end_s - SETTLED_S, moments.back_s), moments.end_s),
    }
    figures = {}
    for name, (from_s, to_s) in periods.items():
        asked, said = _within(requests, from_s, to_s), _within(reports, from_s, to_s)
        if not asked or not said:
            bench.unsound(f"{name}: the load feed said nothing, or nobody asked")
            return
        figures[name] = period(asked, said)
        bench.row(load=name, seconds=to_s - from_s, **figures[name])
    lateness_s = [request["late_s"] for request in requests]
    late_s = max(lateness_s)
    if late_s > MOST_LATE_S:
        bench.unsound(f"a request was asked {late_s:.1f} s later than meant: the machine was too busy")
    bench.config |= {
        "replicas_before": moments.before,
        "replicas_most": moments.most,
        "replica_start_s": _between(moments.wanted_s, moments.more_s),
        "back_to_few_s": _between(moments.back_s, moments.fewer_s),
        "asked_late_s": {"most": late_s, "p95": float(np.percentile(lateness_s, 95))},
        "series": series(requests, reports, moments.end_s),
    }
    failed = [request for request in requests if "ms" not in request]
    by_agent = sum(bool(request["by_agent"]) for request in failed)
    bench.target("requests lost", len(failed) - by_agent, "requests", 0, "at_most")
    bench.target("requests that the devices' own limits turned away", by_agent, "requests", 0, "at_most")
    late = sum(each["late"] for name, each in figures.items() if "last" not in name)
    bench.target("answers after their deadline", late, "requests", 0, "at_most")
    # One that a burst before the step had asked for was not started for the step.
    from_s = min(moments.step_s, moments.step_s if moments.wanted_s is None else moments.wanted_s)
    bench.config["wanted_before_the_step_s"] = moments.step_s - from_s
    bench.target(
        "first new replica ready after the step, or after it was wanted if that was before",
        _between(from_s, moments.more_s),
        "s",
        READY_WITHIN_S,
        "at_most",
    )
    wait_ms = figures["4x, the last seconds"]["wait_ms"] if moments.more_s is not None else None
    bench.target("mean wait in the last seconds of the step", wait_ms, "ms", target_ms, "at_most")
    apart = (
        figures["1x again, the last seconds"]["on_device"] - figures["1x"]["on_device"]
        if None not in (figures["1x"]["on_device"], figures["1x again, the last seconds"]["on_device"])
        else None
    )
    bench.target("share on the devices at the end above that before", apart, "share", _SAME_SHARE, "at_most")
    bench.target(
        "replicas intended at the end over those before the step",
        reports[-1]["target"] / max(moments.before, 1),
        "x",
        1.0,
        "at_most",
    )


def period(requests: Sequence[Row], reports: Sequence[Row]) -> dict[str, Any]:
    """What was asked and what came of it, and means of what the feed said; None without any."""
    answered = [request for request in requests if "ms" in request]
    latencies = [request["ms"] for request in answered]

    def share(*where: str) -> float | None:
        return sum(request["where"] in where for request in answered) / len(answered) if answered else None

    def mean(key: str) -> float | None:
        return float(np.mean([report[key] for report in reports])) if reports else None

    return {
        "asked": len(requests),
        "unanswered": len(requests) - len(answered),
        "late": sum(request["ms"] > request["deadline_ms"] for request in answered),
        "p50_ms": float(np.percentile(latencies, 50)) if latencies else None,
        "p99_ms": float(np.percentile(latencies, 99)) if latencies else None,
        "on_device": share("device", "device-fallback"),
        "fallback": share("device-fallback"),
        "ready": mean("ready"),
        "target": mean("target"),
        "wait_ms": mean("wait_ms"),
    }


def series(requests: Sequence[Row], reports: Sequence[Row], seconds: float) -> list[dict[str, Any]]:
    """For every second what was asked, where it was computed, at which cuts, and the wait."""
    rows = []
    for second in range(int(seconds)):
        asked, said = _within(requests, second, second + 1), _within(reports, second, second + 1)
        cuts = Counter(request["cut"] for request in asked if "ms" in request)
        by_cut = {str(cut): count for cut, count in sorted(cuts.items())}
        rows.append({"second": second, **period(asked, said), "answers_by_cut": by_cut})
    return rows


def _within(rows: Sequence[Row], from_s: float, to_s: float) -> list[Row]:
    return [row for row in rows if from_s <= row["at_s"] < to_s]


def _first(reports: Sequence[Row], is_it: Any) -> float | None:
    return next((report["at_s"] for report in reports if is_it(report)), None)


def _between(from_s: float | None, to_s: float | None) -> float | None:
    return None if from_s is None or to_s is None else to_s - from_s
