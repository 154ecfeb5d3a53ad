"""The modelled table of the paper, on made-up networks: its fits, its policies, and what it reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import paper
from bench.contract import Bench
from bench.paper_figures import over_paper, savings, share_of_optimum, speed_ups
from bench.paper_hardware import ALEXNET_MS, DEVICES, LINKS, PAPERS_MAX, Account, Hardware, Network
from bench.paper_policies import POLICIES, Situation
from shared import zoo
from shared.codec import Codec
from shared.plan.energy import energy_mj
from shared.plan.features import UnitFeatures
from shared.plan.latency import latency_ms
from shared.tensor import DType
from tests.shared.plan.builders import chain, profile_of

WIFI, _, THREE_G = LINKS


def network(sizes: list[int], mflops: list[float], here_ms: list[float]) -> Network:
    graph = chain(sizes, DType.FLOAT32)
    units = tuple(
        UnitFeatures(index, "conv2d", "conv2d", "convolution", flops * 1e6, 0, 0, 0, 1, ())
        for index, flops in enumerate(mflops)
    )
    return Network(graph, profile_of(graph, here_ms), units)


def hardware() -> Hardware:
    """One large network whose middle is narrow and which grows dearer towards its end, and one tiny one."""
    return Hardware(
        {
            "alexnet": network(
                [40_000, 60_000, 9_000, 5_000, 1_000], [100.0, 200.0, 700.0, 450.0], [3.8] * 4
            ),
            "senna-ner": network([1_700, 8_000, 500], [2.0, 8.0], [0.05] * 2),
        }
    )


HARDWARE = hardware()


def at(name: str = "alexnet", account: Account | None = None) -> Situation:
    return HARDWARE.situation(name, WIFI, "TK1 GPU", account or Account("paper", 1.0, 5.0))


def test_the_zoo_has_the_eight_networks_of_the_paper() -> None:
    assert list(paper.NETWORKS.values()) == ["IMC", "VGG", "FACE", "DIG", "ASR", "POS", "CHK", "NER"]
    assert set(paper.NETWORKS) <= set(zoo.names())


@pytest.mark.parametrize("per_op", [1.0, 8.0])
def test_alexnet_takes_on_each_machine_what_it_took_the_paper(per_op: float) -> None:
    for name, machine in HARDWARE.machines(per_op).items():
        taken = sum(machine.unit_ms(unit) for unit in HARDWARE.networks["alexnet"].units)
        assert taken == pytest.approx(ALEXNET_MS[name])


def test_the_fit_gives_the_papers_policy_the_papers_greatest_gains() -> None:
    fitted = HARDWARE.fitted()
    gains = {False: 0.0, True: 0.0}
    for energy in gains:
        for name in HARDWARE.networks:
            for link in LINKS:
                for device in DEVICES:
                    cell = HARDWARE.situation(name, link, device, fitted)
                    costs = (
                        energy_mj(cell.rows, cell.conditions, cell.power)
                        if energy
                        else latency_ms(cell.rows, cell.conditions)
                    )
                    gain = (
                        costs[POLICIES["status quo"](cell, energy)] / costs[POLICIES["paper"](cell, energy)]
                    )
                    gains[energy] = max(gains[energy], float(gain))
    assert gains[False] == pytest.approx(PAPERS_MAX["ms"], rel=1e-4)
    assert 100 * (1 - 1 / gains[True]) == pytest.approx(PAPERS_MAX["mJ"], rel=1e-4)


def test_networks_that_cannot_gain_as_much_as_the_paper_are_refused() -> None:
    large = Hardware({"alexnet": HARDWARE.networks["alexnet"]})
    with pytest.raises(ValueError, match="is never 40"):
        large.fitted()


def test_the_papers_account_counts_neither_round_trip_nor_way_back_nor_waiting() -> None:
    cell = at()
    row = POLICIES["status quo"](cell, False)
    upload_ms = 160_000 * 8 / 12.8e3
    assert latency_ms(cell.rows, cell.conditions)[row] == pytest.approx(upload_ms + 6.0, rel=0.01)
    everything = at(account=Account("all", 1.0, 5.0, everything=True))
    back_ms = 4_000 * 8 / 12.8e3
    more_ms = (
        latency_ms(everything.rows, everything.conditions)[row] - latency_ms(cell.rows, cell.conditions)[row]
    )
    assert more_ms == pytest.approx(WIFI.rtt_ms + back_ms)
    spent = energy_mj(cell.rows, cell.conditions, cell.power)[row]
    assert spent == pytest.approx(upload_ms * (0.28317 * 12.8 + 0.13286), rel=0.03)
    # Idle while the uplink, the cloud and the downlink work.
    waiting_mj = 1.6 * (upload_ms + 6.0 + WIFI.rtt_ms + back_ms)
    receiving_mj = back_ms * (0.13701 * 12.8 + 0.13286)
    all_mj = energy_mj(everything.rows, everything.conditions, everything.power)[row]
    assert all_mj - spent == pytest.approx(waiting_mj + receiving_mj, rel=0.01)


def test_status_quo_sends_the_input_as_it_is_and_the_extremes_are_extremes() -> None:
    cell = at()
    row = POLICIES["status quo"](cell, True)
    assert cell.rows.cut_of(row).edge_units == ()
    assert cell.rows.codec_of(row) is Codec.FLOAT32
    assert POLICIES["device only"](cell, False) == cell.rows.local
    best = POLICIES["cloud, best codec"](cell, False)
    assert cell.rows.cut_of(best).edge_units == ()
    assert cell.rows.payload_bytes[best] < cell.rows.payload_bytes[row]


@pytest.mark.parametrize("energy", [False, True])
@pytest.mark.parametrize("name", ["alexnet", "senna-ner"])
@pytest.mark.parametrize("link", LINKS)
def test_a_minimum_cut_of_a_chain_is_the_best_of_its_cuts(energy: bool, name: str, link: tuple) -> None:  # type: ignore[type-arg]
    cell = HARDWARE.situation(name, link, "TK1 CPU", Account("paper", 1.0, 5.0))
    row = POLICIES["DADS-like"](cell, energy)
    watts = cell.power.busy_w if energy else 1.0
    sending = cell.radio_w if energy else 1.0
    computing = cell.rows.edge_ms * watts + (0.0 if energy else cell.rows.cloud_ms)
    believed = np.where(cell.rows.codec == int(Codec.FLOAT32), computing + cell.upload_ms * sending, np.inf)
    assert believed[row] == pytest.approx(believed.min(), rel=1e-6)


def test_maui_takes_all_layers_for_alike() -> None:
    """The first two units take 67 of 81 ms, so that the narrow tensor after them comes too late to be worth
    its 22 ms.  Taken for a quarter each, they seem to leave half of the work to the cloud."""
    early = network([40_000, 60_000, 9_000, 5_000, 1_000], [1000.0, 200.0, 150.0, 100.0], [3.8] * 4)
    cell = Hardware({"alexnet": early}).situation("alexnet", WIFI, "TK1 GPU", Account("paper", 1.0, 5.0))
    papers, maui = (POLICIES[name](cell, False) for name in ("paper", "MAUI-like"))
    assert papers == cell.rows.local
    assert cell.rows.cut_of(maui).index == 2
    costs = latency_ms(cell.rows, cell.conditions)
    assert costs[papers] < costs[maui]


@pytest.mark.parametrize("energy", [False, True])
@pytest.mark.parametrize("name", ["alexnet", "senna-ner"])
def test_no_policy_beats_suture_and_suture_not_the_optimum(energy: bool, name: str) -> None:
    bench = Bench("paper", [])
    for link in LINKS:
        for device in DEVICES:
            for everything in (False, True):
                cell = HARDWARE.situation(name, link, device, Account("", 2.0, 5.0, everything))
                row = paper.costs_of(bench, cell, {"network": name})[energy]
                assert row["unit"] == ("mJ" if energy else "ms")
                assert row["Suture"] == pytest.approx(row["oracle"], rel=1e-5)
                assert all(row[policy] >= row["Suture"] - 1e-9 for policy in POLICIES)
    assert not bench.problems


def test_plans_on_predicted_times_cost_what_they_truly_take(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = at()
    best = float(latency_ms(cell.rows, cell.conditions).min())
    monkeypatch.setattr(paper, "PREDICTION_ERROR", 1e-9)
    assert paper.planned_on_predictions(cell, np.random.default_rng(0)) == pytest.approx(
        [best] * 20, abs=1e-3
    )
    monkeypatch.setattr(paper, "PREDICTION_ERROR", 2.0)
    taken = paper.planned_on_predictions(cell, np.random.default_rng(0))
    assert min(taken) >= best - 1e-3
    assert max(taken) > best * 1.05


def test_gains_are_per_cell_against_the_status_quo() -> None:
    rows = [
        {"status quo": 100.0, "paper": 50.0, "Suture": 25.0, "oracle": 20.0, "on_predictions": [25.0, 40.0]},
        {"status quo": 100.0, "paper": 200.0, "Suture": 50.0, "oracle": 50.0, "on_predictions": [50.0, 50.0]},
    ]
    assert speed_ups(rows, "Suture") == [4.0, 2.0]
    assert savings(rows, "paper") == [50.0, -100.0]
    assert over_paper(rows) == [2.0, 4.0]
    assert share_of_optimum(rows) == pytest.approx(100 * (0.8 + 0.5 + 1.0 + 1.0) / 4)


def test_the_bench_reports_by_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = HARDWARE.networks
    monkeypatch.setattr(paper, "_QUICK", tuple(known))
    monkeypatch.setattr(paper, "measured", lambda name, *_: (known[name].graph, known[name].here))
    monkeypatch.setattr(
        Network,
        "of",
        classmethod(lambda cls, graph, here: next(each for each in known.values() if each.graph is graph)),
    )
    path = tmp_path / "paper.json"
    assert paper.main(["--quick", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["sound"]
    assert len(document["rows"]) == 2 * len(LINKS) * len(DEVICES) * 2 * 2
    counted = [row for row in document["rows"] if row["account"] == "paper" and row["unit"] == "ms"]
    assert all(len(row["on_predictions"]) == 20 for row in counted)
    faster = [row["status quo"] / row["Suture"] for row in counted]
    targets = {target["name"]: target for target in document["targets"]}
    assert targets["mean speed-up over the status quo"]["value"] == pytest.approx(sum(faster) / len(faster))
    assert [target["target"] for target in document["targets"]] == [3.1, 59.5, 1.3, 1.3, 98.5]
    papers = [line for line in document["config"]["summary"] if line["paper's max"] is not None]
    assert {line["unit"]: line["max"] for line in papers} == pytest.approx(PAPERS_MAX, rel=1e-4)
    assert len(document["config"]["varied"]) == 4
