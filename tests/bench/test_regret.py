"""The bench of regret: which candidates stay in the race, what it makes of its rows, and one cell live."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from bench import regret
from bench.contract import Bench
from bench.grid import Cell
from bench.regret import Taken, near_the_best, report


def test_the_race_is_among_those_near_the_best_and_the_chosen() -> None:
    screened = {row: Taken(ms=[ms, 500.0]) for row, ms in enumerate([100.0, 114.0, 116.0, 200.0])}
    screened[9] = Taken()
    assert near_the_best(screened, 3) == [0, 1, 3]
    many = {row: Taken(ms=[100.0 + row]) for row in range(9)}
    assert near_the_best(many, 0) == [0, 1, 2, 3, 4]


def cell_row(
    chosen_ms: float, best_ms: float, error: float, baseline_ms: float | None = 200.0
) -> dict[str, Any]:
    return {
        "regret_pct": 100 * (chosen_ms / best_ms - 1),
        "oracle_pct": None,
        "noise_pct": 1.0,
        "chosen_ms": chosen_ms,
        "best_ms": best_ms,
        "subject": {"error": [error, -error]},
        "contenders": {"device": {"error": [0.02]}},
        "device_only_ms": baseline_ms,
        "cloud_only_ms": 400.0,
        "paper_ms": 150.0,
    }


def test_targets_hold_the_mean_regret_and_the_errors() -> None:
    bench = Bench("regret", [])
    bench.rows = [cell_row(102.0, 100.0, 0.04), cell_row(100.0, 100.0, 0.06, baseline_ms=None)]
    report(bench)
    found = {target.name: target for target in bench.targets}
    assert found["mean regret"].value == pytest.approx(1.0)
    assert found["mean regret"].met
    assert found["median |predicted - measured|"].value == pytest.approx(5.0)
    assert found["p90 |predicted - measured|"].value == pytest.approx(6.0)
    summary = bench.config["summary"]
    assert summary["worst regret, %"] == pytest.approx(2.0)
    assert summary["mean speed-up over device only"] == pytest.approx(200 / 102)  # of the one cell
    assert summary["mean regret of the paper's policy, %"] == pytest.approx(50.0)


@pytest.mark.slow
def test_a_cell_is_measured_live_with_its_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regret, "_QUICK_NETWORKS", ("mnist",))
    monkeypatch.setattr(regret, "balanced_cells", lambda *_: [Cell("mnist", 6.0, 36, False)] * 3)
    monkeypatch.setattr(regret, "_QUICK_CELL_S", 0.1)
    monkeypatch.setattr(regret, "_SETTLE_S", 0.1)
    monkeypatch.setattr(regret, "_RETUNE_S", 1.0)
    path = tmp_path / "regret.json"
    assert regret.main(["--quick", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert len(document["rows"]) == 3
    for row in document["rows"]:
        assert {row["best"], "device"} <= set(row["screened"])
        medians = [statistics.median(taken["ms"]) for taken in row["contenders"].values()]
        assert row["best_ms"] == pytest.approx(min(medians), abs=1e-3)
        assert len(row["subject"]["ms"]) >= 4
        assert set(row["baselines"]) == {"device_only", "cloud_only", "paper"}
        assert row["baselines"]["device_only"] == "device"
    assert max(row["cloud_only_ms"] or 0.0 for row in document["rows"]) > 10.0, "the link's round trip"
