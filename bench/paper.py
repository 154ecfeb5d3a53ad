"""The table of the Neurosurgeon paper on its hardware, modelled: eight networks, three links, two devices.

``python -m bench.paper --json FILE [--quick]``.  The paper's machines are not here: their unit times are
those of rooflines, fitted to figures of the paper (:mod:`bench.paper_hardware`).  All else is the product's
own: graphs, payloads measured on real activations, candidates, cost classes, planner.  What is compared is in
:mod:`bench.paper_policies`, with the optimum over all sets of units (:mod:`bench.exact`).

Costs are counted twice: ``paper`` counts what the paper counts, so that neither round trips nor the answer's
way back nor waiting cost anything; ``all`` counts them, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.candidates import label
from bench.contract import Bench
from bench.exact import Judge
from bench.paper_figures import report
from bench.paper_hardware import ALEXNET_MS, DEVICES, IDLE_W, LINKS, Account, Hardware, Network
from bench.paper_policies import POLICIES, Situation
from bench.solver import measured
from shared.plan.energy import energy_mj
from shared.plan.latency import latency_ms
from shared.plan.objective import Latency
from shared.plan.radio import power_mw
from shared.plan.rows import FAITHFUL
from shared.plan.solve import choose
from shared.plan.stages import POSITION, Stage

__all__ = ["NETWORKS", "accounts", "costs_of", "main", "planned_on_predictions"]

NETWORKS = {
    "alexnet": "IMC",
    "vgg19": "VGG",
    "deepface": "FACE",
    "mnist": "DIG",
    "kaldi": "ASR",
    "senna-pos": "POS",
    "senna-chk": "CHK",
    "senna-ner": "NER",
}
"""Ours, and the paper's name."""

PREDICTION_ERROR = 0.15
"""The median error of a unit's time on a device that was never profiled (``bench.predict``, sweep)."""

_DRAWS = 20
_QUICK = ("alexnet", "mnist", "senna-ner")


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("paper", argv, description=(__doc__ or "").partition("\n")[0], arguments=_arguments)
    torch.set_num_threads(1)
    names = _QUICK if bench.quick else tuple(NETWORKS)
    hardware = Hardware(
        {
            name: Network.of(*measured(name, bench.options.cache_dir, bench.options.repeats))
            for name in bench.track(names, "running the networks for their payloads")
        }
    )
    with bench.console.status("fitting the machines to the paper ..."):
        fitted = hardware.fitted()
    machines = [machine.as_dict() for machine in hardware.machines(fitted.per_op).values()]
    bench.config = {
        "machines": machines,
        "calibrated_on_ms": ALEXNET_MS,
        "busy_w": fitted.busy_w,
        "idle_w": IDLE_W,
        "codecs_slower_than_here": hardware.codecs_slower,
        "links": [link._asdict() | {"sending_w": power_mw(link.type, link.mbps) / 1e3} for link in LINKS],
        "codecs": [codec.label for codec in FAITHFUL],
        "prediction_error": PREDICTION_ERROR,
    }
    bench.show(f"machines as fitted; a busy device draws {fitted.busy_w:.2f} W", machines)
    rng = np.random.default_rng(bench.seed)
    varied: dict[str, list[dict[str, Any]]] = {}
    counted, further = accounts(fitted)
    for account in bench.track((*counted, *further), "accounts"):
        for name in names:
            for link in LINKS:
                for device in DEVICES:
                    at = hardware.situation(name, link, device, account)
                    where = {"network": NETWORKS[name], "link": str(link.type), "on": device}
                    rows = costs_of(bench, at, where | {"account": account.name})
                    if account == fitted:
                        rows[0]["on_predictions"] = planned_on_predictions(at, rng)
                    if account in counted:
                        bench.rows += rows
                    else:
                        varied.setdefault(account.name, []).extend(rows)
    report(bench, varied)
    return bench.finish(show_rows=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3, help="runs behind a codec's measured time")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="keep profiles and graphs between runs")


def accounts(fitted: Account) -> tuple[tuple[Account, ...], tuple[Account, ...]]:
    """Those whose cells are told, and those that show how much hangs on the two fitted numbers."""
    per_op, busy_w = fitted.per_op, fitted.busy_w
    told = (fitted, fitted._replace(name="all", everything=True))
    further = (
        fitted._replace(name="an operator costs a quarter", per_op=per_op / 4),
        fitted._replace(name="an operator costs twice as much", per_op=per_op * 2),
        fitted._replace(name="a busy device draws half", busy_w=busy_w / 2),
        fitted._replace(name="a busy device draws twice as much", busy_w=busy_w * 2),
    )
    return told, further


def costs_of(bench: Bench, at: Situation, where: dict[str, str]) -> list[dict[str, Any]]:
    """What every policy costs in one cell: one row for latency and one for energy."""
    rows, conditions = at.rows, at.conditions
    best = {
        False: Judge(at.graph, at.profile, at.cloud_unit_ms, FAITHFUL).best(conditions).latency_ms,
        True: float(energy_mj(rows, conditions, at.power).min()),
    }
    found = []
    for energy in (False, True):
        costs = energy_mj(rows, conditions, at.power) if energy else latency_ms(rows, conditions)
        chosen = {name: policy(at, energy) for name, policy in POLICIES.items()}
        if costs[chosen["Suture"]] < best[energy] * (1 - 1e-5):
            bench.unsound(f"{', '.join(where.values())}: the plan is better than the optimum")
        found.append(
            {
                **where,
                "unit": "mJ" if energy else "ms",
                **{name: float(costs[index]) for name, index in chosen.items()},
                "oracle": best[energy],
                "Suture's cut": label(rows, chosen["Suture"]),
                "after": rows.cut_of(chosen["Suture"]).name,
                "choices": {name: label(rows, index) for name, index in chosen.items()},
            }
        )
    return found


def planned_on_predictions(at: Situation, rng: np.random.Generator) -> list[float]:
    """What Suture's plan takes in ms when every unit's time on the device was predicted, not measured.

    Errors are independent and log-normal, with PREDICTION_ERROR as the median of their absolute values.
    """
    spread = PREDICTION_ERROR / statistics.NormalDist().inv_cdf(0.75)
    rows, unit_ms = at.rows, np.array(at.profile.unit_ms)
    on_device = np.zeros((len(rows), len(unit_ms)))
    for row in range(len(rows)):
        on_device[row, list(rows.cut_of(row).edge_units)] = 1.0
    true = latency_ms(rows, at.conditions)
    taken = []
    for _ in range(_DRAWS):
        columns = rows.columns.copy()
        columns[POSITION[Stage.DEVICE]] = on_device @ (
            unit_ms * np.exp(rng.normal(0.0, spread, len(unit_ms)))
        )
        believed = Latency().score(replace(rows, columns=columns), at.conditions)
        taken.append(round(float(true[choose(believed).row]), 4))
    return taken


if __name__ == "__main__":
    sys.exit(main())
