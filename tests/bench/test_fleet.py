from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.fleet import main
from bench.fleet_calibration import Calibration
from bench.fleet_cloud import Reports
from bench.fleet_figures import offload_share, swing
from bench.virtual_time import Timeline
from shared.wire.messages import LoadReport


def test_events_happen_in_order_and_time_jumps() -> None:
    time, seen = Timeline(), []
    time.at(5.0, lambda: seen.append(("second", time.now_ms)))
    time.at(1.0, lambda: time.after(4.0, lambda: seen.append(("third", time.now_ms))))
    time.at(9.0, lambda: seen.append(("never", time.now_ms)))
    time.run(9.0)
    assert seen == [("second", 5.0), ("third", 5.0)]
    assert time.now_ms == 9.0
    assert time.events == 3


def test_shares_are_counted_by_bin_and_an_empty_one_repeats() -> None:
    moments = np.array([0.0, 50.0, 99.0, 250.0])
    remote = np.array([True, False, True, False])
    share, total = offload_share(moments, remote, 0.0, 300.0)
    assert share.tolist() == pytest.approx([2 / 3, 2 / 3, 0.0])
    assert total.tolist() == [3, 0, 1]


def test_chance_is_no_swing_and_a_crowd_that_alternates_is() -> None:
    draw = np.random.default_rng(1)
    requests = np.full(300, 500)
    chance = swing(draw.binomial(500, 0.4, 300) / 500, requests)
    assert chance["mean"] == pytest.approx(0.4, abs=0.01)
    assert chance["deviation"] < 0.01
    herd = swing(np.where(np.arange(300) % 4 < 2, 0.2, 0.6), requests)
    assert herd["deviation"] == pytest.approx(0.2, abs=0.01)
    assert herd["echo"] == pytest.approx(1.0, abs=0.05)
    assert herd["period_s"] % 0.4 == pytest.approx(0.0, abs=1e-6) or herd["period_s"] > 0.3


def test_the_cloud_is_as_the_live_benches_found_it(tmp_path: Path) -> None:
    assumed = Calibration.stored(tmp_path)
    assert set(assumed.sources.values()) == {"built in, there is no result"}
    hop = {"activation": "150 kB", "path": "suture: from the gateway on", "p50_ms": 1.5}
    share = {"name": "throughput at saturation over torch alone", "value": 0.8}
    (tmp_path / "hop.json").write_text(json.dumps({"rows": [hop]}))
    (tmp_path / "load.json").write_text(json.dumps({"targets": [share]}))
    (tmp_path / "scale.json").write_text(json.dumps({"config": {"replica_start_s": 6.5}}))
    found = Calibration.stored(tmp_path)
    assert (found.hop_ms, found.of_torch, found.start_ms) == (1.5, 0.8, 6500.0)
    assert [source.partition(".")[0] for source in found.sources.values()] == ["hop", "load", "scale"]


def test_a_device_hears_all_reports_since_the_last_or_the_newest_of_them() -> None:
    reports = Reports()
    for number in range(10):
        reports.publish(LoadReport(gateway="g", sequence=number, models=[]), number * 100.0)
    heard = reports.between(200.0, 700.0, None)
    assert [moment for moment, _ in heard] == [300.0, 400.0, 500.0, 600.0, 700.0]
    assert [report.sequence for _, report in reports.between(200.0, 700.0, 2)] == [6, 7]


@pytest.mark.slow
def test_a_small_fleet_runs_through_everything_that_happens(tmp_path: Path) -> None:
    path, picture = tmp_path / "fleet.json", tmp_path / "fleet.svg"
    arguments = [
        "--quick",
        "--devices",
        "60",
        "--seconds",
        "4",
        "--rate-hz",
        "1",
        "--network",
        "mnist",
    ]
    assert main([*arguments, "--json", str(path), "--plot", str(picture)]) == 0
    document = json.loads(path.read_text())
    assert document["quick"] is True
    rows = {(row["fleet"], row["since"]): row for row in document["rows"]}
    assert [since for fleet, since in rows if fleet == "mixed"] == [
        "all start",
        "others",
        "slow uplinks",
        "feed lost",
    ]
    assert all(row["requests"] > 20 and 0 <= row["offloaded"] <= 1 for row in rows.values())
    assert {run["name"] for run in document["config"]["runs"]} == {
        "all alike",
        "all alike, undamped",
        "mixed",
    }
    for run in document["config"]["runs"]:
        series = run["series"]
        assert len(series["wait_ms"]) == len(series["p99_ms"]) <= 240
        for shares in zip(*series["share"].values(), strict=True):
            assert sum(shares) == pytest.approx(1.0, abs=0.01) or sum(shares) == 0
    assert b"<svg" in picture.read_bytes()[:600]
