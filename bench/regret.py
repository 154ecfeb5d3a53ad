"""Are the plans right?  What the controller chose against the best that could be measured, live.

For each cell (network, link, device slow-down, load of the cloud) every candidate that may be the fastest at
some uplink is pinned and measured, with them both extremes and the choice of Neurosurgeon's policy; then
those that come near the best, in turn with requests that nobody pinned.  Everything is real but the device's
slowness and the link: two agents in this process, gateway and replicas in another, the link in a third, and
other devices in a fourth.

The agent that decides (the subject) learns from its own requests, pings, probes and load reports alone;
candidates are pinned at the other (the reference), which has a link of its own to the same gateway and shares
the subject's compute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from bench.busy import start_busy
from bench.candidates import (
    cloud_only,
    codecs_in,
    label,
    noise,
    oracle_regret,
    papers_choice,
    regret,
    to_try,
)
from bench.child import Child, ChildError
from bench.cloud_process import start_cloud
from bench.contract import Bench
from bench.grid import LINKS_MBPS, SLOWDOWNS, Cell, all_cells, balanced_cells
from bench.link_process import LinkProcess
from bench.stretch import RepeatingRunner
from edge_agent.agent import EdgeAgent
from edge_agent.decision import Decision
from edge_agent.link import LinkState
from edge_agent.result import Result
from edge_agent.runner import Work
from shared import zoo
from shared.codec import Codec, Form
from shared.config import AgentConfig
from shared.errors import PlanError
from shared.graph import CapturedModel, Graph
from shared.wire.messages import Infer

__all__ = ["main"]

_NETWORKS = ("efficientnet-lite0", "alexnet", "resnet50", "bert-encoder")
_QUICK_NETWORKS = ("efficientnet-lite0",)
_QUICK_CELLS = 3
_DELAY_MS = 5.0
_DEADLINE_MS = 60_000.0

_CELL_S, _QUICK_CELL_S = 10.0, 4.0
_SCREENED = 2
_NEAR, _MOST_CONTENDERS = 1.15, 5
_LEAST_ROUNDS, _MOST_ROUNDS = 4, 12

_SETTLE_S, _RETUNE_S, _LONGER_S = 1.5, 7.0, 3.0
"""How long the subject is left alone: at the same link, at a new one (three probes), and if it wavers."""

_STEADY = 4
_ONLINE_TRIES, _ONLINE_WAIT_S = 200, 0.05

_BUSY_SHARE, _BUSY_IN_FLIGHT = (0.2, 0.35), 4

_BOUND = {Form.EXACT: 1e-4, Form.HALF: 1e-2, Form.UINT8: 0.15, Form.INT4: 0.5}
"""Greatest error of an answer over its greatest value, by what the codec keeps."""


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
    _report(bench)
    return bench.finish()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="the full factorial: over half an hour")


class _SharedRunner(RepeatingRunner):
    """One worker and one set of programs for both agents."""

    async def load(self, name: str, captured: CapturedModel) -> Graph:
        if name in self._programs:
            return self.program(name).graph
        return await super().load(name, captured)


@dataclass(slots=True)
class _Stage:
    bench: Bench
    links: tuple[LinkProcess, ...]
    others: Child
    runner: _SharedRunner
    subject: EdgeAgent
    reference: EdgeAgent
    judge: Judge
    scratch: Path
    rng: random.Random
    mbps: float = math.inf
    strays: list[str] = field(default_factory=list)


async def _run(bench: Bench, networks: Sequence[str], cells: Sequence[Cell]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        with bench.console.status("starting: cloud and device load and measure every network ..."):
            stage = await _set_up(bench, stack, networks)
        for cell in bench.track(cells, "cells", total=len(cells)):
            await _measure(stage, cell)
    bench.config["not_measured_as_pinned"] = stage.strays


async def _set_up(bench: Bench, stack: contextlib.AsyncExitStack, networks: Sequence[str]) -> _Stage:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-")))
    cloud_config = {
        "gateway": {"device_port": 0, "replica_port": 0, "load_port": 0},
        "models": [{"name": name} for name in networks],
        "cache_dir": str(scratch / "cloud"),
    }
    cloud, gateway, feed = await start_cloud(cloud_config, scratch / "cloud.log")
    stack.push_async_callback(cloud.stop)
    others = await start_busy(gateway, scratch / "others.log")
    stack.push_async_callback(others.stop)
    runner = _SharedRunner(1, "cpu", 1)
    agents, links = [], []
    upstreams = [("127.0.0.1", urlsplit(endpoint).port or 0) for endpoint in (gateway, feed)]
    for name in ("subject", "reference"):
        # A link each: heartbeats of the one must not wait behind payloads of the other.
        link = await LinkProcess.start(upstreams, scratch / f"{name}-link.log", delay_ms=_DELAY_MS)
        stack.push_async_callback(link.stop)
        links.append(link)
        there = {
            key: f"tcp://127.0.0.1:{port}"
            for key, port in zip(("gateway", "load_feed"), link.ports, strict=True)
        }
        config = AgentConfig.model_validate(
            {
                "name": name,
                "threads": 1,
                "cloud": there,
                "models": [{"name": network} for network in networks],
                "cache_dir": str(scratch / "device"),
            }
        )
        agent = EdgeAgent.from_config(config, runner_factory=lambda device, threads: runner)
        agents.append(await stack.enter_async_context(agent))
    subject, reference = agents
    judge = await runner.call(lambda: Judge(networks))
    await _wait_online(agents)
    rng = random.Random(bench.seed)
    return _Stage(bench, tuple(links), others, runner, subject, reference, judge, scratch, rng)


async def _wait_online(agents: Sequence[EdgeAgent]) -> None:
    """What held the interpreter's lock for long may have cost a link.  Raises ChildError where it is down."""
    for _ in range(_ONLINE_TRIES):
        if all(agent.link_state is LinkState.ONLINE for agent in agents):
            return
        await asyncio.sleep(_ONLINE_WAIT_S)
    raise ChildError(f"no link: {', '.join(agent.link_reason for agent in agents)}")


class Judge:
    """What eager PyTorch says; shares no code with the pipeline but the networks and their inputs."""

    def __init__(self, networks: Sequence[str]) -> None:
        import torch

        self._expected: dict[str, Any] = {}
        self._labelled: dict[str, bool] = {}
        with torch.inference_mode():
            for name in networks:
                network = zoo.build(name)
                self._expected[name] = _leaves(network.module(*network.args, **network.kwargs))
                self._labelled[name] = network.labels is not None

    def complaint(self, name: str, result: Result) -> str:
        """What is wrong with an answer; '' when nothing is."""
        known = {codec.label: codec.form for codec in Codec}
        forms = {known.get(label, Form.EXACT) for label in codecs_in(result.codec)}  # raw, or nothing sent
        bound = max(_BOUND.values() if result.codec.startswith("mixed") else map(_BOUND.__getitem__, forms))
        pairs = list(zip(_leaves(result.outputs), self._expected[name], strict=True))
        error = max(float(np.abs(ours - true).max() / np.abs(true).max()) for ours, true in pairs)
        where = f"{name} cut at {result.cut} in {result.codec or 'no codec'}"
        if not error <= bound:
            return f"{where}: an answer is off by {error:.2g} of its greatest value"
        if self._labelled[name] and any(ours.argmax() != true.argmax() for ours, true in pairs):
            return f"{where}: another class than the whole network's"
        return ""


def _leaves(tree: Any) -> list[np.ndarray[Any, Any]]:
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])]
    if isinstance(tree, list | tuple):
        return [leaf for each in tree for leaf in _leaves(each)]
    return [np.asarray(tree)]


# one cell


@dataclass(slots=True)
class _Taken:
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
    for link in stage.links:
        await link.set_rate(cell.mbps)
    _slow_down(stage, cell.slowdown)
    if cell.loaded:
        await _start_others(stage, cell.network)
    try:
        settled = await _settle(stage, cell.network, _RETUNE_S if retuned else _SETTLE_S)
        began_s = time.monotonic()
        decision = stage.subject.decision(cell.network)
        rows, conditions = decision.rows, decision.conditions
        baselines = {
            "device_only": rows.local,
            "cloud_only": cloud_only(rows, conditions),
            "paper": papers_choice(rows, conditions),
        }
        tried = sorted({*to_try(rows, conditions), *baselines.values(), decision.row})
        screened = {row: _Taken() for row in tried}
        for _ in range(_SCREENED):
            for row in stage.rng.sample(tried, len(tried)):
                await _pinned(stage, cell.network, decision, row, screened[row])
        contenders = _contenders(screened, decision.row)
        measured = {row: _Taken() for row in contenders}
        chosen = _Taken()
        choices: list[int | None] = []
        seconds = stage.bench.config["seconds_per_cell"]
        for number in range(_MOST_ROUNDS):
            if number >= _LEAST_ROUNDS and time.monotonic() - began_s > seconds:
                break
            for row in stage.rng.sample([*contenders, None], len(contenders) + 1):
                if row is not None:
                    await _pinned(stage, cell.network, decision, row, measured[row])
                    continue
                result = await _ask(stage, stage.subject, cell.network)
                chosen.add(result)
                choices.append(_row_of(result, decision))
    finally:
        if cell.loaded:
            await stage.others.call("stop")
    _add_row(stage, cell, decision, settled, baselines, screened, measured, chosen, choices)


def _slow_down(stage: _Stage, factor: int) -> None:
    """Another device, as it would have measured itself."""
    stage.runner.factor = factor
    for agent in (stage.subject, stage.reference):
        for name, profile in stage.runner.profiles.items():
            agent.pipeline.controller.on_measured(
                name, agent.pipeline.now_ms(), profile=profile.stretched(factor)
            )


async def _settle(stage: _Stage, network: str, seconds: float) -> dict[str, Any]:
    """Ask for this long, and a little longer while the choice changes."""
    began_s = time.monotonic()
    seen: list[tuple[str, str]] = []
    while True:
        result = await _ask(stage, stage.subject, network)
        seen.append((result.cut, result.codec))
        elapsed_s = time.monotonic() - began_s
        steady = len(seen) >= _STEADY and len(set(seen[-_STEADY:])) == 1
        if elapsed_s > seconds + (0.0 if steady else _LONGER_S):
            return {"requests": len(seen), "seconds": elapsed_s, "steady": steady}


async def _pinned(stage: _Stage, network: str, decision: Decision, row: int, taken: _Taken) -> None:
    rows = decision.rows
    cut = rows.cut_of(row)
    try:
        stage.reference.pipeline.controller.pin(network, cut, rows.codecs_of(row) or rows.codec_of(row))
    except PlanError as error:  # a mix of codecs that another profile would not consider
        stage.strays.append(str(error))
        return
    result = await _ask(stage, stage.reference, network)
    if (result.cut, result.codec) != (cut.name, rows.label_of(row)) or result.fallback:
        stage.strays.append(f"{network} ran at {result.cut}, not {cut.name}: {result.fallback or 'no link'}")
        return
    taken.add(result)


async def _ask(stage: _Stage, agent: EdgeAgent, network: str) -> Result:
    """One request, with its answer checked."""
    args, kwargs = agent.models[network].example
    result = await agent.infer(network, *args, deadline_ms=_DEADLINE_MS, **kwargs)
    complaint = stage.judge.complaint(network, result)
    if complaint:
        stage.bench.unsound(complaint)
    return result


def _row_of(result: Result, decision: Decision) -> int | None:
    """The candidate that a request ran as; None for one that there was not when candidates were listed."""
    rows = decision.rows
    for row in range(len(rows)):
        if (rows.cut_of(row).name, rows.label_of(row)) == (result.cut, result.codec):
            return row
    return None


def _contenders(screened: dict[int, _Taken], chosen: int) -> list[int]:
    """Those that came near the best; the others cannot be the best by the noise there is."""
    least = {row: min(taken.ms) for row, taken in screened.items() if taken.ms}
    near = sorted(
        (row for row in least if least[row] <= _NEAR * min(least.values())), key=lambda row: least[row]
    )
    return sorted({*near[:_MOST_CONTENDERS], chosen})


async def _start_others(stage: _Stage, network: str) -> None:
    """Other devices send the activations of a late cut, which the device computes for them here."""
    agent = stage.reference
    rows = agent.pipeline.controller.rows(network)
    share = rows.cloud_ms / rows.cloud_ms.max()
    late = np.flatnonzero(
        (share > _BUSY_SHARE[0]) & (share < _BUSY_SHARE[1]) & (rows.codec == int(Codec.FLOAT16))
    )
    row = int(late[np.argmin(rows.payload_bytes[late])])
    cut, graph = rows.cut_of(row), agent.graph(network)
    args, kwargs = agent.models[network].example
    factor, stage.runner.factor = stage.runner.factor, 1
    prefix = await stage.runner.prefix(network, graph.flatten(args, kwargs), cut, rows.codecs_of(row), Work())
    stage.runner.factor = factor
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
    screened: dict[int, _Taken],
    measured: dict[int, _Taken],
    chosen: _Taken,
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


def _plain(taken: _Taken) -> dict[str, Any]:
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


def _report(bench: Bench) -> None:
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
