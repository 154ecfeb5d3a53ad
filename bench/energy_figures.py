"""What the bench of energy says of its rows: one line for each cell, a summary, and the targets.

A row is one policy in one cell, as :mod:`bench.energy` adds it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.contract import Bench

__all__ = ["BASELINES", "OBJECTIVES", "noise_floor", "report"]

OBJECTIVES = ("latency", "energy", "energy_in_time", "latency_in_budget")
BASELINES = ("device_only", "cloud_only", "paper")

_TOLERANCE = 0.1
"""By how much a limit may be missed: plans hold it in prediction, not in measurement."""


def noise_floor(rows: Sequence[dict[str, Any]]) -> float:
    """By how much the joules of the same thing measured twice differ in one cell, as a share: the greatest
    difference between medians of even and odd rounds of a policy that chose the same all the time."""
    apart = [
        abs(statistics.median(row["samples_mj"][::2]) / statistics.median(row["samples_mj"][1::2]) - 1)
        for row in rows
        if len(row["samples_mj"]) >= 4 and len(set(row["choices"])) == 1
    ]
    return max(apart, default=0.0)


def report(bench: Bench) -> None:
    """One line for each cell, the summary, and the targets."""
    cells: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in bench.rows:
        key = (row["network"], row["radio"], row["device"])
        cells.setdefault(key, {})[row["policy"]] = row
    whole = [cell for cell in cells.values() if {*OBJECTIVES, *BASELINES} == set(cell)]
    if not whole:
        bench.unsound("no cell was measured with all policies")
        return
    bench.show(
        "median mJ of the device by what is asked for, and what the two plain objectives chose",
        [_line(cell) for cell in whole],
    )

    ratios = [cell["energy"]["mj"] / cell["latency"]["mj"] - 1 for cell in whole]
    differ = [
        ratio
        for ratio, cell in zip(ratios, whole, strict=True)
        if cell["energy"]["chosen"] != cell["latency"]["chosen"]
    ]
    floors = [noise_floor(list(cell.values())) for cell in whole]
    beyond = [ratio - floor for ratio, floor in zip(ratios, floors, strict=True)]
    errors = [
        abs(predicted / mj - 1)
        for cell in whole
        for policy in OBJECTIVES
        for predicted, mj in zip(
            cell[policy]["samples_predicted_mj"], cell[policy]["samples_mj"], strict=True
        )
    ]
    over = [share for row in bench.rows for share in row["over_limit"]]
    bench.config["summary"] = summary = {
        "cells": len(whole),
        "cells in which the two objectives chose differently": len(differ),
        "energy objective against latency objective, mean saving there, %": -100 * statistics.mean(differ)
        if differ
        else None,
        "the same, largest, %": -100 * min(differ) if differ else None,
        "what that costs in latency, mean, %": _mean_percent(
            [cell["energy"]["latency_ms"] / cell["latency"]["latency_ms"] - 1 for cell in whole]
        ),
        "energy objective against latency objective, worst cell, % more": 100 * max(ratios),
        "noise floor, median of the cells, %": 100 * statistics.median(floors),
        "noise floor, greatest, %": 100 * max(floors),
        **{
            f"mean energy of {name.replace('_', ' ')} over the energy objective's": statistics.geometric_mean(
                [cell[name]["mj"] / cell["energy"]["mj"] for cell in whole]
            )
            for name in BASELINES
        },
        "requests over their limit by more than a tenth, %": _mean_percent(
            [each > _TOLERANCE for each in over]
        ),
        "requests whose limit could not be kept any more": sum(row["refused"] for row in bench.rows),
    }
    bench.show("summary", [{"figure": name, "value": value} for name, value in summary.items()])
    bench.target(
        "energy objective's mJ beyond the latency objective's and the noise floor, worst cell",
        100 * max(beyond),
        "%",
        0.0,
        "at_most",
    )
    bench.target("median |predicted - metered| energy", 100 * statistics.median(errors), "%", 10.0, "at_most")
    bench.target(
        "requests over their deadline or budget by more than a tenth",
        summary["requests over their limit by more than a tenth, %"],
        "%",
        5.0,
        "at_most",
    )


_COLUMNS = {
    "latency": "latency",
    "energy": "energy",
    "energy_in_time": "energy in time",
    "latency_in_budget": "latency in budget",
    "device_only": "device alone",
    "cloud_only": "cloud alone",
    "paper": "paper",
}


def _line(cell: dict[str, dict[str, Any]]) -> dict[str, Any]:
    first = cell["energy"]
    line: dict[str, Any] = {key: first[key] for key in ("network", "radio", "device")}
    line |= {column: cell[policy]["mj"] for policy, column in _COLUMNS.items()}
    line |= {"fastest is": cell["latency"]["chosen"], "thriftiest is": first["chosen"]}
    return line


def _mean_percent(shares: Sequence[float]) -> float | None:
    return 100 * statistics.mean(shares) if shares else None
