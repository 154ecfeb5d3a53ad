"""Does planning for energy save energy?  The device's joules by objective, live, by the model meter.

For each cell (network, radio, device slow-down) requests take turns that ask for the least latency, the least
energy, the least energy within a deadline and the least latency within a budget of energy, with the device
alone, the cloud alone in the codec of least energy, and the choice of Neurosurgeon's policy for energy.
Everything is real but the device's slowness, the link and the meter, which reckons from the stages of the
very request: watts busy and idle, and the radio's line (:mod:`shared.plan.radio`) at the rate that was
measured.  A radio's tail, which draws power after the last byte, is not in it.

Requests with an objective of their own go to the subject, pinned ones to the reference
(:mod:`bench.two_agents`).  Gateway and replica run in another process, each link in another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.candidates import cheapest_cloud, label, papers_energy_choice
from bench.cloud_process import start_cloud
from bench.contract import Bench
from bench.energy_figures import BASELINES, OBJECTIVES, report
from bench.judge import Judge
from bench.two_agents import TwoAgents, enter_agents, row_of
from edge_agent.decision import Decision
from edge_agent.result import Result
from shared.errors import PlanError
from shared.plan.energy import Power, energy_mj
from shared.plan.latency import Conditions, latency_ms
from shared.plan.radio import LinkType, power_mw
from shared.plan.rows import Rows

__all__ = ["Taken", "limits", "main"]

BUSY_W, IDLE_W = 5.0, 1.5
SLOWDOWNS = (4, 16)

_NETWORKS = ("efficientnet-lite0", "alexnet", "resnet50")
_QUICK_NETWORKS, _QUICK_RADIOS, _QUICK_SLOWDOWNS = ("efficientnet-lite0",), ("wifi",), (12,)

_CELL_S, _QUICK_CELL_S = 5.0, 4.0
_LEAST_ROUNDS, _MOST_ROUNDS = 4, 8
_SETTLE_S, _RETUNE_S = 1.5, 7.0
_ALONE_SLACK = 0.25


class Radio(NamedTuple):
    """``mbps`` and ``rtt_ms`` are what the link is set to, in both directions."""

    link: LinkType
    mbps: float
    rtt_ms: float


RADIOS = (
    Radio(LinkType.THREE_G, 1.4, 60.0),
    Radio(LinkType.LTE, 6.8, 40.0),
    Radio(LinkType.WIFI, 12.8, 10.0),
)
"""The rates of the paper's three networks; the round trips are ours."""


@dataclass(slots=True)
class Taken:
    """Requests of one policy in one cell.  ``refused`` counts limits that could not be kept at all."""

    limit: float | None = None
    ms: list[float] = field(default_factory=list)
    mj: list[float] = field(default_factory=list)
    predicted_mj: list[float] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    refused: int = 0

    def add(self, result: Result, choice: str) -> None:
        assert result.energy_mj is not None
        self.ms.append(result.latency_ms)
        self.mj.append(result.energy_mj)
        self.predicted_mj.append(float(result.decision["energy_mj"]))
        self.choices.append(choice)

    @property
    def errors(self) -> list[float]:
        """Predicted over metered energy, less 1."""
        return [predicted / mj - 1 for predicted, mj in zip(self.predicted_mj, self.mj, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("energy", argv, description=(__doc__ or "").partition("\n")[0], arguments=_arguments)
    names = _QUICK_NETWORKS if bench.quick else _NETWORKS
    networks = tuple(bench.options.network or names)
    radios = [radio for radio in RADIOS if not bench.quick or radio.link in _QUICK_RADIOS]
    slowdowns = _QUICK_SLOWDOWNS if bench.quick else SLOWDOWNS
    bench.config = {
        "networks": networks,
        "radios": [
            radio._asdict() | {"sending_w": power_mw(radio.link, radio.mbps) / 1e3} for radio in radios
        ],
        "device_slowdowns": slowdowns,
        "busy_w": BUSY_W,
        "idle_w": IDLE_W,
        "seconds_per_cell": _QUICK_CELL_S if bench.quick else _CELL_S,
        "meter": "model",
    }
    asyncio.run(_run(bench, networks, radios, slowdowns))
    report(bench)
    return bench.finish(show_rows=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network", action="append", metavar="NAME", help="instead of the usual three; repeatable"
    )


async def _run(
    bench: Bench, networks: Sequence[str], radios: Sequence[Radio], slowdowns: Sequence[int]
) -> None:
    strays: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-")))
        with bench.console.status("starting: the cloud loads and measures every network ..."):
            cloud_config = {
                "gateway": {"device_port": 0, "replica_port": 0, "load_port": 0},
                "models": [{"name": name} for name in networks],
                "cache_dir": str(scratch / "cloud"),
            }
            cloud, *endpoints = await start_cloud(cloud_config, scratch / "cloud.log")
            stack.push_async_callback(cloud.stop)
            judge = await asyncio.to_thread(Judge, networks)
        for radio in radios:
            async with contextlib.AsyncExitStack() as around:
                with bench.console.status(f"starting a device with {radio.link} ..."):
                    agents = await enter_agents(
                        around,
                        networks,
                        endpoints,
                        scratch,
                        judge,
                        delay_ms=radio.rtt_ms / 2,
                        seed=bench.seed,
                        power={"busy_w": BUSY_W, "idle_w": IDLE_W, "link": radio.link, "meter": "model"},
                    )
                    await agents.set_rate(radio.mbps)
                    await agents.settle(networks[0], _RETUNE_S)
                cells = [(network, slowdown) for network in networks for slowdown in slowdowns]
                for network, slowdown in bench.track(cells, str(radio.link)):
                    await _measure(bench, agents, radio, network, slowdown)
                strays += agents.strays
                for complaint in agents.complaints:
                    bench.unsound(complaint)
    bench.config["not_measured_as_pinned"] = strays


async def _measure(bench: Bench, agents: TwoAgents, radio: Radio, network: str, slowdown: int) -> None:
    """Add one row for each policy in one cell."""
    agents.slow_down(slowdown)
    await agents.settle(network, _SETTLE_S)
    began_s = time.monotonic()
    decision = agents.subject.decision(network)
    rows, conditions, power = decision.rows, decision.conditions, decision.power
    assert power is not None
    deadline_ms, budget_mj = limits(rows, conditions, power)
    asked: dict[str, dict[str, Any]] = {
        "latency": {"minimise": "latency"},
        "energy": {"minimise": "energy"},
        "energy_in_time": {"minimise": "energy", "deadline_ms": deadline_ms},
        "latency_in_budget": {"minimise": "latency", "energy_mj": budget_mj},
    }
    pinned = {
        "device_only": rows.local,
        "cloud_only": cheapest_cloud(rows, conditions, power),
        "paper": papers_energy_choice(rows, conditions, power),
    }
    taken = {policy: Taken() for policy in (*OBJECTIVES, *BASELINES)}
    taken["energy_in_time"].limit, taken["latency_in_budget"].limit = deadline_ms, budget_mj
    for number in range(_MOST_ROUNDS):
        if number >= _LEAST_ROUNDS and time.monotonic() - began_s > bench.config["seconds_per_cell"]:
            break
        for policy in agents.rng.sample(list(taken), len(taken)):
            if policy in pinned:
                row = pinned[policy]
                result = await agents.ask_pinned(network, rows, row)
                if result is not None:
                    taken[policy].add(result, label(rows, row))
                continue
            try:
                result = await agents.ask(network, asked[policy])
            except PlanError:  # the limit was possible when it was set, and is not now
                taken[policy].refused += 1
                continue
            taken[policy].add(result, _label(result, decision))
    for policy, each in taken.items():
        _add_row(bench, radio, network, slowdown, policy, each)


def _label(result: Result, decision: Decision) -> str:
    row = row_of(result, decision)
    return f"{result.cut} {result.codec}" if row is None else label(decision.rows, row)


def limits(rows: Rows, conditions: Conditions, power: Power) -> tuple[float, float]:
    """A deadline in ms and a budget in mJ that bind: half-way between what the two objectives come to.

    Where both choose the same row there is nothing between: a quarter more than what that row comes to.
    """
    latency, energy = latency_ms(rows, conditions), energy_mj(rows, conditions, power)
    fastest, thriftiest = int(np.argmin(latency)), int(np.argmin(energy))
    if fastest == thriftiest:
        return float(latency[fastest] * (1 + _ALONE_SLACK)), float(energy[fastest] * (1 + _ALONE_SLACK))
    return (
        float(latency[fastest] + latency[thriftiest]) / 2,
        float(energy[fastest] + energy[thriftiest]) / 2,
    )


def _add_row(bench: Bench, radio: Radio, network: str, slowdown: int, policy: str, taken: Taken) -> None:
    if not taken.mj:
        bench.unsound(
            f"{network}, {radio.link}, device {slowdown}x slower: nothing was measured for {policy}"
        )
        return
    spent = {"energy_in_time": taken.ms, "latency_in_budget": taken.mj}.get(policy, [])
    over = [each / taken.limit - 1 for each in spent] if taken.limit is not None else []
    bench.row(
        network=network,
        radio=str(radio.link),
        mbps=radio.mbps,
        device=f"{slowdown}x",
        policy=policy,
        chosen=statistics.mode(taken.choices),
        latency_ms=statistics.median(taken.ms),
        mj=statistics.median(taken.mj),
        predicted_mj=statistics.median(taken.predicted_mj),
        error_pct=100 * statistics.median(abs(error) for error in taken.errors),
        limit=taken.limit,
        refused=taken.refused,
        over_limit=over,
        samples_ms=[round(ms, 3) for ms in taken.ms],
        samples_mj=[round(mj, 3) for mj in taken.mj],
        samples_predicted_mj=[round(mj, 3) for mj in taken.predicted_mj],
        choices=taken.choices,
    )


if __name__ == "__main__":
    raise SystemExit(main())
