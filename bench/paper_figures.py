"""What the modelled table comes to: means and maxima by policy, beside the paper's own figures.

A row is one network, link and device in one account and one unit, with the cost of every policy, as
:mod:`bench.paper` adds it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bench.contract import Bench
from bench.paper_hardware import PAPERS_MAX

__all__ = ["over_paper", "report", "savings", "share_of_optimum", "speed_ups"]

PAPERS_MEAN = {"ms": 3.1, "mJ": 59.5}
PAPERS_SHARE = 98.5
"""The paper's headline: times faster than the status quo and per cent of its energy saved, on average, and
per cent of the best speed-up.  Its greatest are what the machines are fitted to."""

_POLICIES = ("cloud, best codec", "device only", "paper", "MAUI-like", "DADS-like", "Suture", "oracle")
_SHOWN = ("status quo", *_POLICIES)

Rows = Sequence[dict[str, Any]]


def speed_ups(rows: Rows, policy: str) -> list[float]:
    """Times faster than the status quo, per cell."""
    return [row["status quo"] / row[policy] for row in rows]


def savings(rows: Rows, policy: str) -> list[float]:
    """Per cent of the status quo's energy that is not spent, per cell; negative where it is more."""
    return [100 * (1 - row[policy] / row["status quo"]) for row in rows]


def over_paper(rows: Rows) -> list[float]:
    """How much less Suture takes than the paper's policy, as a factor, per cell."""
    return [row["paper"] / row["Suture"] for row in rows]


def share_of_optimum(rows: Rows) -> float:
    """Mean share of the best speed-up that plans on predicted times reach, in per cent, as the paper's
    98.5 is on its own predictions."""
    shares = [float(row["oracle"] / taken) for row in rows for taken in row["on_predictions"]]
    return 100 * statistics.mean(shares)


def report(bench: Bench, varied: dict[str, list[dict[str, Any]]]) -> None:
    """The cells as the paper counts, the summary in both accounts, and the targets.

    ``varied`` holds the rows of further accounts, of which only the means are told.
    """
    for unit, what in (("ms", "latency"), ("mJ", "energy of the device")):
        rows = _of(bench.rows, "paper", unit)
        keys = ("network", "link", "on", *_SHOWN, "Suture's cut")
        bench.show(
            f"{what} in {unit}, as the paper counts", [{key: row[key] for key in keys} for row in rows]
        )
    summary = [
        _line(bench.rows, account, unit, policy)
        for account in ("paper", "all")
        for unit in ("ms", "mJ")
        for policy in _POLICIES
    ]
    bench.config["summary"] = summary
    bench.show("against the status quo: times faster in ms, per cent saved in mJ", summary)
    for key in ("on", "link", "network"):
        bench.config[f"by_{key}"] = lines = _by(bench.rows, key)
        bench.show("Suture and the paper's policy, as the paper counts", lines)
    bench.config["varied"] = lines = [
        _means(
            name, [row for row in rows if row["unit"] == "ms"], [row for row in rows if row["unit"] == "mJ"]
        )
        for name, rows in varied.items()
    ]
    bench.show("the same under other assumptions, as the paper counts", lines)
    _promise(bench)


def _promise(bench: Bench) -> None:
    latency, energy = _of(bench.rows, "paper", "ms"), _of(bench.rows, "paper", "mJ")
    hold = bench.target
    hold(
        "mean speed-up over the status quo",
        statistics.mean(speed_ups(latency, "Suture")),
        "x",
        PAPERS_MEAN["ms"],
        "at_least",
    )
    hold(
        "mean energy saved against the status quo",
        statistics.mean(savings(energy, "Suture")),
        "%",
        PAPERS_MEAN["mJ"],
        "at_least",
    )
    for account, how in (("paper", "as it counts"), ("all", "with all that it leaves out")):
        hold(
            f"mean speed-up over the paper's policy, {how}",
            statistics.mean(over_paper(_of(bench.rows, account, "ms"))),
            "x",
            1.3,
            "at_least",
        )
    hold(
        "share of the optimum, planned on predicted times",
        share_of_optimum(latency),
        "%",
        PAPERS_SHARE,
        "at_least",
    )


def _line(rows: Rows, account: str, unit: str, policy: str) -> dict[str, Any]:
    gains = _gains(unit)(_of(rows, account, unit), policy)
    papers = account == "paper" and policy == "paper"
    return {
        "counted": "as in the paper" if account == "paper" else "everything",
        "unit": unit,
        "policy": policy,
        "mean": statistics.mean(gains),
        "geometric": statistics.geometric_mean(gains) if unit == "ms" else None,
        "median": statistics.median(gains),
        "max": max(gains),
        "min": min(gains),
        "paper's mean": PAPERS_MEAN[unit] if papers else None,
        "paper's max": PAPERS_MAX[unit] if papers else None,
    }


def _by(rows: Rows, key: str) -> list[dict[str, Any]]:
    latency, energy = _of(rows, "paper", "ms"), _of(rows, "paper", "mJ")
    return [
        _means(
            value,
            [row for row in latency if row[key] == value],
            [row for row in energy if row[key] == value],
        )
        for value in dict.fromkeys(row[key] for row in latency)
    ]


def _means(name: str, latency: Rows, energy: Rows) -> dict[str, Any]:
    return {
        "of": name,
        "Suture faster": statistics.mean(speed_ups(latency, "Suture")),
        "paper's policy faster": statistics.mean(speed_ups(latency, "paper")),
        "Suture over paper's policy": statistics.mean(over_paper(latency)),
        "Suture saves %": statistics.mean(savings(energy, "Suture")),
        "paper's policy saves %": statistics.mean(savings(energy, "paper")),
    }


def _gains(unit: str) -> Callable[[Rows, str], list[float]]:
    return speed_ups if unit == "ms" else savings


def _of(rows: Rows, account: str, unit: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["account"], row["unit"]) == (account, unit)]
