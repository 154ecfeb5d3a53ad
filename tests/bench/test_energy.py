"""The bench of energy: the limits that it sets, its baselines, what it makes of its rows, one cell live."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import energy
from bench.candidates import cheapest_cloud, label, papers_energy_choice
from bench.contract import Bench
from bench.energy import Radio, limits
from bench.energy_figures import BASELINES, OBJECTIVES, noise_floor, report
from shared.plan.energy import Power, energy_mj
from shared.plan.latency import Conditions, latency_ms
from shared.plan.objective import Energy, Latency
from shared.plan.radio import LinkType
from shared.plan.solve import choose
from tests.bench.test_candidates import ROWS
from tests.shared.plan.builders import CONDITIONS

POWER = Power(5.0, 1.5, LinkType.LTE)


@given(CONDITIONS, st.sampled_from(list(LinkType)))
def test_limits_can_be_kept_and_bind_where_the_objectives_differ(at: Conditions, link: LinkType) -> None:
    power = Power(5.0, 1.5, link)
    deadline_ms, budget_mj = limits(ROWS, at, power)
    in_time = choose(Energy(power, deadline_ms).score(ROWS, at))
    thrifty = choose(Latency(budget_mj, power).score(ROWS, at))
    latency, spent = latency_ms(ROWS, at), energy_mj(ROWS, at, power)
    assert latency[in_time.row] <= deadline_ms
    assert spent[thrifty.row] <= budget_mj
    fastest, thriftiest = int(np.argmin(latency)), int(np.argmin(spent))
    if fastest == thriftiest:
        assert in_time.row == thrifty.row == fastest
    elif latency[thriftiest] > latency[fastest] * 1.001 and spent[fastest] > spent[thriftiest] * 1.001:
        assert latency[thriftiest] > deadline_ms
        assert spent[fastest] > budget_mj


def test_the_cloud_alone_is_thriftiest_in_the_smallest_codec_where_sending_costs() -> None:
    """On this radio's line a byte costs 3.5 uJ at any rate; on a wire it costs the waiting alone."""
    for bps in (1e4, 1e12):
        assert label(ROWS, cheapest_cloud(ROWS, Conditions(bps, 10.0), POWER)) == "cloud uint8+zstd"
    assert label(ROWS, cheapest_cloud(ROWS, Conditions(1e12, 10.0), Power(5.0, 1.5))) == "cloud float32"


def test_the_papers_policy_charges_sending_to_the_radio_alone() -> None:
    """At 10 Mbps sending takes 5.67 W: 907 mJ for the input of 200 kB, 181 after 10 ms of computing at 5 W
    for the 40 kB of the first unit, against 600 mJ on the device.  Waiting, at 1.5 W, is free to it."""
    at = Conditions(1e7, 10_000.0)
    row = papers_energy_choice(ROWS, at, POWER)
    assert label(ROWS, row) == "1/3 float32"
    assert energy_mj(ROWS, at, POWER)[row] > energy_mj(ROWS, at, POWER)[ROWS.local]
    assert papers_energy_choice(ROWS, Conditions(1e5, 10.0), POWER) == ROWS.local


def policy_row(policy: str, mj: float, chosen: str = "device", **changes: Any) -> dict[str, Any]:
    return {
        "network": "net",
        "radio": "lte",
        "device": "4x",
        "policy": policy,
        "chosen": chosen,
        "latency_ms": 100.0,
        "mj": mj,
        "predicted_mj": mj,
        "samples_mj": [mj] * 4,
        "samples_predicted_mj": [mj * 1.04] * 4,
        "choices": [chosen] * 4,
        "refused": 0,
        "over_limit": [],
        **changes,
    }


def reported(*rows: dict[str, Any]) -> Bench:
    bench = Bench("energy", [])
    bench.rows = [{**policy_row(policy, 100.0)} for policy in (*OBJECTIVES, *BASELINES)]
    for row in rows:
        (at,) = [index for index, each in enumerate(bench.rows) if each["policy"] == row["policy"]]
        bench.rows[at] = row
    report(bench)
    return bench


def test_an_energy_objective_that_takes_more_joules_misses_its_target() -> None:
    good = reported(policy_row("energy", 80.0, "cloud"), policy_row("device_only", 160.0))
    excess, error, over = good.targets
    assert excess.value == pytest.approx(-20.0)
    assert excess.met
    assert error.value == pytest.approx(4.0)
    assert not over.met, "no request had a limit, so that nothing was measured"
    summary = good.config["summary"]
    assert summary["cells in which the two objectives chose differently"] == 1
    assert summary["energy objective against latency objective, mean saving there, %"] == pytest.approx(20.0)
    assert summary["mean energy of device only over the energy objective's"] == pytest.approx(2.0)
    bad = reported(policy_row("energy", 103.0, "cloud"))
    assert bad.targets[0].value == pytest.approx(3.0)
    assert not bad.targets[0].met


def test_the_noise_floor_is_of_choices_that_stayed_and_is_allowed() -> None:
    shaky = policy_row("paper", 100.0, samples_mj=[104.0, 100.0, 104.0, 100.0])
    wavering = policy_row("latency_in_budget", 100.0, samples_mj=[150.0, 100.0, 150.0, 100.0])
    wavering["choices"] = ["device", "cloud", "device", "cloud"]
    assert noise_floor([shaky, wavering]) == pytest.approx(0.04)
    bench = reported(policy_row("energy", 103.0, "cloud"), shaky, wavering)
    assert bench.targets[0].value == pytest.approx(-1.0)
    assert bench.targets[0].met


def test_each_cell_has_a_noise_floor_of_its_own() -> None:
    bench = Bench("energy", [])
    for device, shaken in (("4x", 104.0), ("16x", 100.0)):
        for policy in (*OBJECTIVES, *BASELINES):
            samples = [shaken, 100.0, shaken, 100.0] if policy == "paper" else [100.0] * 4
            bench.row(**policy_row(policy, 100.0, device=device, samples_mj=samples))
    (worse,) = [row for row in bench.rows if (row["device"], row["policy"]) == ("16x", "energy")]
    worse.update(mj=101.0, chosen="cloud")
    report(bench)
    assert bench.targets[0].value == pytest.approx(1.0)
    assert not bench.targets[0].met


def test_limits_are_held_with_a_tolerance() -> None:
    row = policy_row("energy_in_time", 100.0, over_limit=[-0.1, 0.05, 0.09, 0.2])
    bench = reported(row)
    assert bench.targets[2].value == pytest.approx(25.0)


def test_a_run_without_a_whole_cell_is_not_sound() -> None:
    bench = Bench("energy", [])
    bench.rows = [policy_row("energy", 1.0)]
    report(bench)
    assert bench.problems


@pytest.mark.slow
def test_a_cell_is_measured_live_with_every_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "RADIOS", (Radio(LinkType.WIFI, 20.0, 4.0),))
    monkeypatch.setattr(energy, "_QUICK_CELL_S", 0.1)
    monkeypatch.setattr(energy, "_SETTLE_S", 0.1)
    monkeypatch.setattr(energy, "_RETUNE_S", 1.0)
    path = tmp_path / "energy.json"
    assert energy.main(["--quick", "--network", "mnist", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    rows = {row["policy"]: row for row in document["rows"]}
    assert set(rows) == {*OBJECTIVES, *BASELINES}
    for row in rows.values():
        assert row["mj"] == pytest.approx(statistics.median(row["samples_mj"]), abs=1e-3)
        # Nothing draws less than an idle device, and nothing more than a busy one that sends as well.
        sending_w = document["config"]["radios"][0]["sending_w"]
        for ms, mj in zip(row["samples_ms"], row["samples_mj"], strict=True):
            assert energy.IDLE_W * ms * 0.99 <= mj <= (energy.BUSY_W + 2 * sending_w) * ms + 5.0
    assert rows["device_only"]["chosen"] == "device"
    device = rows["device_only"]
    for ms, mj in zip(device["samples_ms"], device["samples_mj"], strict=True):
        assert mj <= energy.BUSY_W * ms * 1.01, "nothing was sent"
    assert rows["cloud_only"]["chosen"].startswith("cloud")
    assert rows["energy_in_time"]["limit"] > 0
