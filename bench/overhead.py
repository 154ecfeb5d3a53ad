"""What Suture itself costs: latency as the application sees it, less everything that had to be.

Had to be: the network's units on either side, both ways through the codecs, the payload's bytes at the
link's rate, the answer's bytes at its rate back, and one round trip of the link.  Compute and codecs are
what each side measured for the very request; the payload's time is the gateway's arrival span, the answer's
is taken from the link's rate (nothing on loopback); the round trip is that of idle heartbeats.  What is
left is bookkeeping, event loops, queues, the gateway's and the replica's handling, and whatever the
machine did meanwhile; a second table says how much of it lies where.

The agent runs in this process, gateway and replicas in another, the relay of the shaped link in a third.
Each network is cut at its input, about its middle, and at its end.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bench.child import run
from bench.cloud_process import start_cloud
from bench.contract import Bench, spread
from bench.link_process import LinkProcess
from edge_agent.agent import EdgeAgent
from edge_agent.link import LinkState
from edge_agent.result import Result, Where
from shared.codec import Codec
from shared.config import AgentConfig
from shared.plan.latency import latency_ms
from shared.plan.stages import Stage

__all__ = ["main"]

_NETWORKS = ("efficientnet-lite0", "resnet50", "bert-encoder")
_ALLOWED_MS, _ALLOWED_SHARE = 2.0, 0.03
_MEASURED = (
    Stage.DEVICE,
    Stage.ENCODE,
    Stage.UPLINK,
    Stage.DECODE,
    Stage.CLOUD,
    Stage.RESULT_ENCODE,
    Stage.RESULT_DECODE,
)
_DEADLINE_MS = 30_000.0
_WARM_UP = 3
_IDLE_S = 2.0


@dataclass(frozen=True, slots=True)
class _Link:
    name: str
    mbps: float | None
    delay_ms: float


_LINKS = (_Link("loopback", None, 0.0), _Link("20 Mbps, 10 ms", 20.0, 5.0))


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("overhead", argv, description=(__doc__ or "").partition("\n")[0], arguments=_arguments)
    bench.config = {
        "networks": bench.options.network or list(_NETWORKS),
        "links": [link.name for link in _LINKS],
        "requests": 8 if bench.quick else 40,
        "allowed_ms": _ALLOWED_MS,
        "allowed_share": _ALLOWED_SHARE,
    }
    rest: list[dict[str, Any]] = []
    run(_run(bench, rest))
    bench.show("where the rest goes, median ms", rest)
    bench.config["where_the_rest_goes"] = rest
    return bench.finish()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network",
        action="append",
        metavar="NAME",
        help="instead of the usual three; repeatable",
    )


async def _run(bench: Bench, rest: list[dict[str, Any]]) -> None:
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-")))
        names = [{"name": name} for name in bench.config["networks"]]
        with bench.console.status("starting the cloud: it loads and measures every network ..."):
            config = {
                "gateway": {"device_port": 0, "replica_port": 0, "load_port": 0},
                "models": names,
                "cache_dir": str(scratch / "cloud"),
            }
            cloud, gateway, feed = await start_cloud(config, scratch / "cloud.log")
            stack.push_async_callback(cloud.stop)
        for link in _LINKS:
            async with AsyncExitStack() as around:
                endpoints = await _through(around, link, (gateway, feed), scratch)
                agent_config = AgentConfig.model_validate(
                    {
                        "name": "overhead",
                        "threads": 1,
                        "cloud": {"gateway": endpoints[0], "load_feed": endpoints[1]},
                        "models": names,
                        "cache_dir": str(scratch / "device"),
                    }
                )
                with bench.console.status("starting the agent ..."):
                    agent = await around.enter_async_context(EdgeAgent.from_config(agent_config))
                    await agent.caught_up()  # all codecs are judged before the best of them are pinned
                if agent.link_state is not LinkState.ONLINE:
                    bench.unsound(f"no link: {agent.link_reason}")
                    return
                await asyncio.sleep(_IDLE_S)
                round_trip_ms = _round_trip_ms(agent)
                if round_trip_ms is None:
                    bench.unsound(f"{link.name}: no heartbeat was answered in {_IDLE_S:g} s")
                    return
                for name in bench.track(bench.config["networks"], link.name):
                    for cut in _cuts(agent, name):
                        measured = await _measure(bench, agent, link, round_trip_ms, name, cut)
                        if measured is not None:
                            rest.append(measured)


async def _through(
    stack: AsyncExitStack, link: _Link, endpoints: tuple[str, str], scratch: Path
) -> tuple[str, str]:
    """The same endpoints behind this link, or as they are on loopback."""
    if link.mbps is None:
        return endpoints
    ports = [urlsplit(endpoint).port or 0 for endpoint in endpoints]
    relay = await LinkProcess.start(
        [("127.0.0.1", port) for port in ports],
        scratch / "link.log",
        uplink_mbps=link.mbps,
        downlink_mbps=link.mbps,
        delay_ms=link.delay_ms,
    )
    stack.push_async_callback(relay.stop)
    gateway, feed = (f"tcp://127.0.0.1:{port}" for port in relay.ports)
    return gateway, feed


def _cuts(agent: EdgeAgent, name: str) -> list[int]:
    """The input, the cut that sends least among those in the middle half of the device's time, the end."""
    rows = agent.pipeline.controller.rows(name)
    share = rows.edge_ms / rows.edge_ms[rows.local]
    middle = np.flatnonzero((share > 0.25) & (share < 0.75) & rows.remote)
    least = middle[np.argmin(rows.payload_bytes[middle])]
    return [0, int(rows.cut[least]), len(agent.graph(name).cuts) - 1]


async def _measure(
    bench: Bench, agent: EdgeAgent, link: _Link, round_trip_ms: float, name: str, cut: int
) -> dict[str, Any] | None:
    """Add the row and the target of one cut; the answer says where the rest goes."""
    args, kwargs = agent.models[name].example
    agent.pin(name, cut, _best_codec(agent, name, cut))
    totals, rests, shares, results = [], [], [], []
    for number in range(_WARM_UP + bench.config["requests"]):
        started_s = time.perf_counter()
        result = await agent.infer(name, *args, deadline_ms=_DEADLINE_MS, **kwargs)
        total_ms = (time.perf_counter() - started_s) * 1000
        if result.where is Where.DEVICE_FALLBACK or result.cut_index != cut:
            bench.unsound(f"{name} over {link.name} ran {result.where} at {result.cut}, not as pinned")
            return None
        if abs(sum(result.breakdown.values()) - result.latency_ms) > 1e-6 * result.latency_ms:
            bench.unsound(f"{name}: the breakdown does not sum to the latency")
        if number < _WARM_UP:
            continue
        left_ms = total_ms - _needed_ms(agent, link, round_trip_ms, name, result)
        totals.append(total_ms)
        rests.append(left_ms)
        shares.append(left_ms / max(_ALLOWED_MS, _ALLOWED_SHARE * total_ms))
        results.append(result)
    left = spread(rests)
    where = f"{name}, {link.name}, {results[0].where}"
    if left["p50_ms"] < 0:
        bench.unsound(f"{where}: the parts sum to {-left['p50_ms']:.2f} ms more than the whole")
    bench.row(
        network=name,
        link=link.name,
        cut=results[0].cut,
        ran=str(results[0].where),
        codec=results[0].codec,
        bytes=results[0].uplink_bytes,
        latency_ms=statistics.median(totals),
        rtt_ms=round_trip_ms if results[0].where is not Where.DEVICE else 0.0,
        rest_ms=left["p50_ms"],
        rest_p90_ms=left["p90_ms"],
        rest_samples_ms=left["samples_ms"],
        breakdown_ms={stage: _median(results, stage) for stage in _stages(results)},
    )
    bench.target(f"{where}: rest over what is allowed", statistics.median(shares), "x", 1.0, "at_most")
    answer_ms = _needed_ms(agent, link, round_trip_ms, name, results[0]) - _measured_ms(results[0])
    return {
        "network": name,
        "link": link.name,
        "ran": str(results[0].where),
        "rest": statistics.median(rests),
        "between the two sides": _median(results, Stage.NETWORK) - answer_ms,
        "cloud's queues": _median(results, Stage.WAIT),
        "device's queue": _median(results, Stage.QUEUE),
        "agent": _median(results, Stage.OVERHEAD),
        "caller": statistics.median(
            total - result.latency_ms for total, result in zip(totals, results, strict=True)
        ),
    }


def _best_codec(agent: EdgeAgent, name: str, cut: int) -> Codec:
    decision = agent.decision(name)
    rows = decision.rows
    there = np.flatnonzero((rows.cut == cut) & (rows.mix < 0))
    return rows.codec_of(int(there[np.argmin(latency_ms(rows, decision.conditions)[there])]))


def _needed_ms(agent: EdgeAgent, link: _Link, round_trip_ms: float, name: str, result: Result) -> float:
    needed_ms = _measured_ms(result)
    if result.where is not Where.DEVICE:
        needed_ms += round_trip_ms
        if link.mbps is not None:
            graph = agent.graph(name)
            answer = graph.specs(graph.output_slots_of(graph.cuts[result.cut_index]), 1)
            needed_ms += sum(spec.nbytes for spec in answer) * 8 / link.mbps / 1000
    return needed_ms


def _measured_ms(result: Result) -> float:
    """The parts that were measured for this request, on whichever side."""
    return sum(result.breakdown.get(stage, 0.0) for stage in _MEASURED)


def _round_trip_ms(agent: EdgeAgent) -> float | None:
    """Of idle heartbeats; None while it is only an assumption."""
    estimate = agent.pipeline.controller.link(agent.pipeline.now_ms())
    return estimate.rtt_ms if math.isfinite(estimate.rtt_age_ms) else None


def _stages(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(stage for result in results for stage in result.breakdown))


def _median(results: Sequence[Result], stage: str) -> float:
    return statistics.median(result.breakdown.get(stage, 0.0) for result in results)


if __name__ == "__main__":
    raise SystemExit(main())
