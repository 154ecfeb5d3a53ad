"""Are the plans right?  What the controller chose against the best that could be measured, live.

For each cell (network, link, device slow-down, load of the cloud) every candidate that may be the fastest at
some uplink is pinned and measured, with them both extremes and the choice of Neurosurgeon's policy; then
those that come near the best, in turn with requests that nobody pinned.  Everything is real but the device's
slowness and the link: two agents in this process, gateway and replicas in another, the link in a third, and
other devices in a fourth.

Which agent decides and at which one candidates are pinned: :mod:`bench.two_agents`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.busy import start_busy
from bench.candidates import (
    cloud_only,
    label,
    noise,
    oracle_regret,
    papers_choice,
    regret,
    to_try,
)
from bench.child import Child
from bench.cloud_process import start_cloud
from bench.contract import Bench
from bench.grid import LINKS_MBPS, SLOWDOWNS, Cell, all_cells, balanced_cells
from bench.judge import Judge
from bench.two_agents import TwoAgents, enter_agents, row_of
from edge_agent.decision import Decision
from edge_agent.result import Result
from edge_agent.runner import Work
from shared.codec import Codec
from shared.wire.messages import Infer

__all__ = ["Taken", "main", "near_the_best", "report"]

_NETWORKS = ("efficientnet-lite0", "alexnet", "resnet50", "bert-encoder")
_QUICK_NETWORKS = ("efficientnet-lite0",)
_QUICK_CELLS = 3
_DELAY_MS = 5.0

_CELL_S, _QUICK_CELL_S = 10.0, 4.0
_SCREENED = 2
_NEAR, _MOST_CONTENDERS = 1.15, 5
_LEAST_ROUNDS, _MOST_ROUNDS = 4, 12

_SETTLE_S, _RETUNE_S = 1.5, 7.0
"""How long the subject is left alone: at the same link, and at a new one (three probes)."""

_BUSY_SHARE, _BUSY_IN_FLIGHT = (0.2, 0.35), 4


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("regret", argv, description=(__doc__ or "").partition("\n")[0], arguments=_arguments)
    networks = _QUICK_NETWORKS if bench.quick else _NETWORKS
    cells = (all_cells if bench.options.all else balanced_cells)(networks, bench.seed)
    if bench.quick:
        cells = cells[:: len(cells) // _QUICK_CELLS]
    bench.config = {
        "networks": networks,
        "links_mbps": LINKS_MBPS,
        "device_slowdowns": SLOWDOWNS,
        "round_trip_ms": 2 * _DELAY_MS,
        "cells": [str(cell) for cell in cells],
        "chosen_cells": "all" if bench.options.all else "a balanced part of the factorial, see bench/grid.py",
        "seconds_per_cell": _QUICK_CELL_S if bench.quick else _CELL_S,
        "load": f"{_BUSY_IN_FLIGHT} requests of another device always under way, "
        f"each {_BUSY_SHARE[0]:.0%} to {_BUSY_SHARE[1]:.0%} of the network",
    }
    asyncio.run(_run(bench, networks, cells))
    report(bench)
    return bench.finish()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="the full factorial: over half an hour")


@dataclass(slots=True)
class _Stage:
    bench: Bench
    others: Child
    agents: TwoAgents
    scratch: Path
    mbps: float = math.inf


async def _run(bench: Bench, networks: Sequence[str], cells: Sequence[Cell]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        with bench.console.status("starting: cloud and device load and measure every network ..."):
            stage = await _set_up(bench, stack, networks)
        for cell in bench.track(cells, "cells", total=len(cells)):
            await _measure(stage, cell)
    bench.config["not_measured_as_pinned"] = stage.agents.strays
    for complaint in stage.agents.complaints:
        bench.unsound(complaint)


async def _set_up(bench: Bench, stack: contextlib.AsyncExitStack, networks: Sequence[str]) -> _Stage:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-")))
    cloud_config = {
        "gateway": {"device_port": 0, "replica_port": 0, "load_port": 0},
        "models": [{"name": name} for name in networks],
        "cache_dir": str(scratch / "cloud"),
    }
    cloud, *endpoints = await start_cloud(cloud_config, scratch / "cloud.log")
    stack.push_async_callback(cloud.stop)
    others = await start_busy(endpoints[0], scratch / "others.log")
    stack.push_async_callback(others.stop)
    judge = await asyncio.to_thread(Judge, networks)
    agents = await enter_agents(
        stack, networks, endpoints, scratch, judge, delay_ms=_DELAY_MS, seed=bench.seed
    )
    return _Stage(bench, others, agents, scratch)


# one cell


@dataclass(slots=True)
class Taken:
    """Requests of one candidate, or of the controller's own choice."""

    ms: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    took: list[dict[str, float]] = field(default_factory=list)

    def add(self, result: Result) -> None:
        predicted = result.decision["predicted"]
        self.ms.append(result.latency_ms)
        self.errors.append(result.decision["predicted_ms"] / result.latency_ms - 1)
        self.took.append({name: round(ms, 2) for name, ms in result.breakdown.items() if ms > 0.01})
        for name in predicted:
            self.stages.setdefault(name, []).append(predicted[name] - result.breakdown.get(name, 0.0))


async def _measure(stage: _Stage, cell: Cell) -> None:
    """Add one cell's row."""
    retuned = stage.mbps != cell.mbps
    stage.mbps = cell.mbps
    agents = stage.agents
    await agents.set_rate(cell.mbps)
    agents.slow_down(cell.slowdown)
    if cell.loaded:
        await _start_others(stage, cell.network)
    try:
        settled = await agents.settle(cell.network, _RETUNE_S if retuned else _SETTLE_S)
        began_s = time.monotonic()
        decision = agents.subject.decision(cell.network)
        rows, conditions = decision.rows, decision.conditions
        baselines = {
            "device_only": rows.local,
            "cloud_only": cloud_only(rows, conditions),
            "paper": papers_choice(rows, conditions),
        }
        tried = sorted({*to_try(rows, conditions), *baselines.values(), decision.row})
        screened = {row: Taken() for row in tried}
        for _ in range(_SCREENED):
            for row in agents.rng.sample(tried, len(tried)):
                await _pinned(stage, cell.network, decision, row, screened[row])
        contenders = near_the_best(screened, decision.row)
        measured = {row: Taken() for row in contenders}
        chosen = Taken()
        choices: list[int | None] = []
        seconds = stage.bench.config["seconds_per_cell"]
        for number in range(_MOST_ROUNDS):
            if number >= _LEAST_ROUNDS and time.monotonic() - began_s > seconds:
                break
            for candidate in agents.rng.sample([*contenders, None], len(contenders) + 1):
                if candidate is not None:
                    await _pinned(stage, cell.network, decision, candidate, measured[candidate])
                    continue
                result = await agents.ask(cell.network)
                chosen.add(result)
                choices.append(row_of(result, decision))
    finally:
        if cell.loaded:
            await stage.others.call("stop")
    _add_row(stage, cell, decision, settled, baselines, screened, measured, chosen, choices)


async def _pinned(stage: _Stage, network: str, decision: Decision, row: int, taken: Taken) -> None:
    result = await stage.agents.ask_pinned(network, decision.rows, row)
    if result is not None:
        taken.add(result)


def near_the_best(screened: dict[int, Taken], chosen: int) -> list[int]:
    """Those that came near the best; the others cannot be the best by the noise there is."""
    least = {row: min(taken.ms) for row, taken in screened.items() if taken.ms}
    near = sorted(
        (row for row in least if least[row] <= _NEAR * min(least.values())), key=lambda row: least[row]
    )
    return sorted({*near[:_MOST_CONTENDERS], chosen})


async def _start_others(stage: _Stage, network: str) -> None:
    """Other devices send the activations of a late cut, which the device computes for them here."""
    agent, runner = stage.agents.reference, stage.agents.runner
    rows = agent.pipeline.controller.rows(network)
    share = rows.cloud_ms / rows.cloud_ms.max()
    late = np.flatnonzero(
        (share > _BUSY_SHARE[0]) & (share < _BUSY_SHARE[1]) & (rows.codec == int(Codec.FLOAT16))
    )
    row = int(late[np.argmin(rows.payload_bytes[late])])
    cut, graph = rows.cut_of(row), agent.graph(network)
    args, kwargs = agent.models[network].example
    factor, runner.factor = runner.factor, 1
    prefix = await runner.prefix(network, graph.flatten(args, kwargs), cut, rows.codecs_of(row), Work())
    runner.factor = factor
    paths = []
    for number, payload in enumerate(prefix.payloads):
        path = stage.scratch / f"payload-{number}"
        await asyncio.to_thread(path.write_bytes, bytes(payload))
        paths.append(str(path))
    header = Infer(batch=1, tensors=list(prefix.headers), reply_codec=Codec.FLOAT32)
    await stage.others.call(
        "start",
        model=network,
        digest=graph.digest,
        cut=cut.index,
        codec=int(rows.codec_of(row)),
        infer=msgspec.json.encode(header).decode(),
        payloads=paths,
        in_flight=_BUSY_IN_FLIGHT,
    )


def _add_row(
    stage: _Stage,
    cell: Cell,
    decision: Decision,
    settled: dict[str, Any],
    baselines: dict[str, int],
    screened: dict[int, Taken],
    measured: dict[int, Taken],
    chosen: Taken,
    choices: list[int | None],
) -> None:
    rows = decision.rows
    samples = {row: taken.ms for row, taken in measured.items() if taken.ms}
    if not chosen.ms or not samples:
        stage.bench.unsound(f"{cell}: nothing was measured")
        return
    names = {row: label(rows, row) for row in {*screened, *(row for row in choices if row is not None)}}
    best = min(samples, key=lambda row: statistics.median(samples[row]))
    figures: dict[str, Any] = {
        "network": cell.network,
        "mbps": cell.mbps,
        "device": f"{cell.slowdown:g}x",
        "cloud": "loaded" if cell.loaded else "idle",
        "chosen": statistics.mode(names.get(row, "?") for row in choices if row is not None),
        "best": names[best],
        "chosen_ms": statistics.median(chosen.ms),
        "best_ms": statistics.median(samples[best]),
        "regret_pct": 100 * regret(chosen.ms, samples),
        "oracle_pct": _percent(oracle_regret(samples)),
        "noise_pct": _percent(noise(samples)),
        "error_pct": 100 * statistics.median(abs(error) for error in chosen.errors),
        "tried": len(screened),
    }
    for name, row in baselines.items():
        ms = [*screened[row].ms, *(measured[row].ms if row in measured else ())]
        figures[f"{name}_ms"] = statistics.median(ms) if ms else None
    stage.bench.row(
        **figures,
        seed_cell=asdict(cell),
        settled=settled,
        conditions=decision.conditions.as_dict(),
        baselines={name: names[row] for name, row in baselines.items()},
        choices=[names.get(row, "?") if row is not None else None for row in choices],
        subject=_plain(chosen),
        screened={names[row]: _plain(taken) for row, taken in screened.items()},
        contenders={names[row]: _plain(taken) for row, taken in measured.items()},
    )


def _plain(taken: Taken) -> dict[str, Any]:
    return {
        "ms": [round(ms, 3) for ms in taken.ms],
        "error": [round(error, 4) for error in taken.errors],
        "breakdown": taken.took,
        "predicted_less_measured_ms": {
            name: round(statistics.median(values), 3) for name, values in taken.stages.items() if any(values)
        },
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


# the whole


def report(bench: Bench) -> None:
    rows = bench.rows
    if not rows:
        return
    errors = [abs(error) for row in rows for error in row["subject"]["error"]]
    pinned = [abs(error) for row in rows for taken in row["contenders"].values() for error in taken["error"]]
    oracle = [row["oracle_pct"] for row in rows if row["oracle_pct"] is not None]
    floor = [row["noise_pct"] for row in rows if row["noise_pct"] is not None]
    bench.config["summary"] = summary = {
        "mean regret, %": statistics.mean(row["regret_pct"] for row in rows),
        "worst regret, %": max(row["regret_pct"] for row in rows),
        "total chosen over total best, %": 100
        * (sum(row["chosen_ms"] for row in rows) / sum(row["best_ms"] for row in rows) - 1),
        "mean regret of an oracle by the same measure, %": statistics.mean(oracle) if oracle else None,
        "same candidate measured twice, median difference, %": statistics.median(floor) if floor else None,
        "pinned candidates, median prediction error, %": 100 * statistics.median(pinned),
        **{
            f"mean speed-up over {name.replace('_', ' ')}": statistics.geometric_mean(
                _ratios(rows, f"{name}_ms", "chosen_ms")
            )
            for name in ("device_only", "cloud_only", "paper")
        },
        "mean regret of the paper's policy, %": 100
        * (statistics.mean(_ratios(rows, "paper_ms", "best_ms")) - 1),
    }
    bench.show("summary", [{"figure": name, "value": value} for name, value in summary.items()])
    bench.target("mean regret", summary["mean regret, %"], "%", 1.5, "at_most")
    bench.target("median |predicted - measured|", 100 * statistics.median(errors), "%", 5.0, "at_most")
    bench.target("p90 |predicted - measured|", 100 * float(np.percentile(errors, 90)), "%", 15.0, "at_most")


def _ratios(rows: Sequence[dict[str, Any]], over: str, under: str) -> list[float]:
    """Of all cells in which both were measured."""
    return [row[over] / row[under] for row in rows if row[over] is not None]


if __name__ == "__main__":
    raise SystemExit(main())
