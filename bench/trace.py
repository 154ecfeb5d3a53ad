"""A network at a frame rate over an uplink that changes: who answers how fast, and who misses how much?

The link follows a recorded or synthetic trace in real time, once for each policy.  Gateway and replica, the
link and the device's agent are processes of their own, except that the agent and the source of frames share
this one.  Baselines are candidates of the same rows on the same pipeline, pinned frame by frame.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.candidates import cloud_only, papers_choice
from bench.cloud_process import start_cloud
from bench.contract import Bench
from bench.judge import Judge
from bench.shaping import Trace, load_trace
from bench.two_agents import TwoAgents, enter_agents
from bench.uplinks import SYNTHETIC, Clock, write_trace
from edge_agent.agent import EdgeAgent
from edge_agent.decision import Decision
from shared.errors import SutureError
from shared.plan.latency import latency_ms
from shared.plan.stages import POSITION, Stage

__all__ = ["Run", "clairvoyant", "main", "report"]

_DELAY_MS = 5.0
_PATIENCE_MS = 60_000.0
"""The deadline of a policy that has none."""
_LIMITS_MS = (100.0, 200.0, 500.0)
_SETTLE_S = 2.0
_POLICIES = (
    "suture",
    "suture, no deadline",
    "device only",
    "cloud only",
    "static cut",
    "paper",
    "clairvoyant",
)
_QUICK_POLICIES = ("suture", "device only", "cloud only", "clairvoyant")


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("trace", argv, description=(__doc__ or "").partition("\n")[0], arguments=_arguments)
    options = bench.options
    seconds = 10.0 if bench.quick else options.seconds
    if options.trace in SYNTHETIC:
        trace = SYNTHETIC[options.trace](seconds, random.Random(bench.seed))
    else:
        try:
            trace = load_trace(options.trace)
        except (OSError, ValueError) as error:
            bench.console.print(f"[bold red]cannot read the trace:[/] {error}", highlight=False)
            return 2
    bench.config = {
        "trace": Path(options.trace).name,
        "mean_mbps": _mean_bps(trace, seconds) / 1e6,
        "seconds": seconds,
        "network": options.network,
        "frames_per_s": options.rate_hz,
        "device_slowdown": options.slowdown,
        "deadline_ms": options.deadline_ms,
        "round_trip_ms": 2 * _DELAY_MS,
    }
    runs = asyncio.run(_run(bench, trace, seconds, _QUICK_POLICIES if bench.quick else _POLICIES))
    report(bench, runs)
    return bench.finish()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", default="markov", metavar="FILE",
                        help="mahimahi or `seconds Mbps` lines; or one of steps, markov, tunnel")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=40.0, help="how much of the trace")
    parser.add_argument("--network", default="efficientnet-lite0", help="a name of the zoo")
    parser.add_argument("--rate-hz", type=float, default=4.0, help="frames a second")
    parser.add_argument("--slowdown", type=int, default=10, help="how many times slower the device is")
    parser.add_argument("--deadline-ms", type=float, default=200.0, help="of Suture's requests")


@dataclass(slots=True)
class Run:
    """One policy over the trace: a frame each in ``ms``, ``places`` and ``at_s``."""

    policy: str
    at_s: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    fallbacks: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def switches(self) -> int:
        return sum(one != other for one, other in zip(self.places, self.places[1:], strict=False))

    def missed(self, limit_ms: float) -> float:
        """The share of frames without an answer by then."""
        late = sum(ms > limit_ms for ms in self.ms) + len(self.errors)
        return late / (len(self.ms) + len(self.errors))


async def _run(bench: Bench, trace: Trace, seconds: float, policies: Sequence[str]) -> list[Run]:
    options = bench.options
    async with contextlib.AsyncExitStack() as stack:
        with bench.console.status("starting: cloud and device load and measure the network ..."):
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-")))
            recorded = write_trace(trace, scratch / "uplink")
            config = {
                "gateway": {"device_port": 0, "replica_port": 0, "load_port": 0},
                "models": [{"name": options.network}],
                "cache_dir": str(scratch / "cloud"),
            }
            cloud, *endpoints = await start_cloud(config, scratch / "cloud.log")
            stack.push_async_callback(cloud.stop)
            judge = await asyncio.to_thread(Judge, [options.network])
            agents = await enter_agents(
                stack, [options.network], endpoints, scratch, judge, delay_ms=_DELAY_MS, seed=bench.seed
            )
            agents.slow_down(options.slowdown)
        runs = []
        for policy in bench.track(policies, "policies", total=len(policies)):
            await agents.set_rate(trace.steps[0][1] / 1e6)
            await agents.settle(options.network, _SETTLE_S)
            runs.append(await _replay(bench, agents, trace, recorded, seconds, policy))
    for complaint in agents.complaints:
        bench.unsound(complaint)
    return runs


async def _replay(
    bench: Bench, agents: TwoAgents, trace: Trace, recorded: Path, seconds: float, policy: str
) -> Run:
    """Frames at their due times, each on its own, whatever became of the one before."""
    options, network = bench.options, bench.options.network
    own = policy.startswith("suture")
    agent = agents.subject if own else agents.reference
    choose = _chooser(policy, trace, seconds)
    deadline_ms = options.deadline_ms if policy == "suture" else _PATIENCE_MS
    run = Run(policy)
    args, kwargs = agent.models[network].example
    for link in agents.links:
        await link.replay(recorded)
    began_s = time.monotonic()

    async def frame(due_s: float) -> None:
        if not own:
            decision = agent.decision(network)
            row = choose(decision, time.monotonic() - began_s)
            rows = decision.rows
            agent.pin(network, rows.cut_of(row), rows.codecs_of(row) or rows.codec_of(row))
        try:
            result = await agent.infer(network, *args, deadline_ms=deadline_ms, **kwargs)
        except SutureError as error:
            run.errors.append(type(error).__name__)
            return
        complaint = agents.judge.complaint(network, result)
        if complaint:
            agents.complaints.append(complaint)
        run.at_s.append(due_s)
        run.ms.append((time.monotonic() - began_s - due_s) * 1e3)
        run.places.append(f"{result.cut} {result.codec}")
        run.fallbacks += result.fallback is not None

    async with asyncio.TaskGroup() as frames:
        for number in range(int(seconds * options.rate_hz)):
            due_s = number / options.rate_hz
            await asyncio.sleep(max(began_s + due_s - time.monotonic(), 0.0))
            frames.create_task(frame(due_s))
    _unpin(agent, network, own)
    return run


def _unpin(agent: EdgeAgent, network: str, own: bool) -> None:
    if not own:
        agent.unpin(network)


Chooser = Callable[[Decision, float], int]


def _chooser(policy: str, trace: Trace, seconds: float) -> Chooser:
    """The row for a frame that comes at a moment of the trace."""
    if policy == "device only":
        return lambda decision, at_s: decision.rows.local
    if policy == "cloud only":
        return lambda decision, at_s: cloud_only(decision.rows, decision.conditions)
    if policy == "static cut":
        mean_bps = _mean_bps(trace, seconds)
        return lambda decision, at_s: int(
            np.argmin(latency_ms(decision.rows, replace(decision.conditions, uplink_bps=mean_bps)))
        )
    if policy == "paper":
        return lambda decision, at_s: papers_choice(decision.rows, decision.conditions)
    if policy == "clairvoyant":
        clock = Clock(trace, 2 * seconds + 60.0)
        return lambda decision, at_s: clairvoyant(decision, clock, at_s)
    return lambda decision, at_s: decision.row


def clairvoyant(decision: Decision, clock: Clock, at_s: float) -> int:
    """The best candidate for one who knows the uplink's future, and all else as the controller does.

    It knows nothing of what earlier frames have left on the link.
    """
    rows, conditions = decision.rows, replace(decision.conditions, reachable=True)
    stages_ms = conditions.weights()[:, None] * rows.columns
    before_ms = sum(stages_ms[POSITION[stage]] for stage in (Stage.QUEUE, Stage.DEVICE, Stage.ENCODE))
    rest_ms = stages_ms.sum(axis=0) - before_ms - stages_ms[POSITION[Stage.UPLINK]]
    ready_s = at_s + before_ms / 1e3
    passed_s = clock.passed_s(ready_s, np.asarray(rows.payload_bytes, dtype=np.float64))
    return int(np.argmin(passed_s * 1e3 + rest_ms))


def _mean_bps(trace: Trace, seconds: float) -> float:
    moments = np.linspace(0.0, seconds, 2000, endpoint=False)
    return statistics.fmean(trace.at(float(moment))[0] for moment in moments)


def report(bench: Bench, runs: Sequence[Run]) -> None:
    """A row for each policy, and the targets."""
    for run in runs:
        if not run.ms:
            bench.unsound(f"{run.policy}: no frame was answered")
            continue
        figures: dict[str, Any] = {
            "policy": run.policy,
            "mean_ms": statistics.fmean(run.ms),
            "p95_ms": float(np.percentile(run.ms, 95)),
            "p99_ms": float(np.percentile(run.ms, 99)),
            **{f"over_{limit:g}_ms_pct": 100 * run.missed(limit) for limit in _LIMITS_MS},
            "switches": run.switches,
            "fallbacks": run.fallbacks,
            "errors": len(run.errors),
        }
        bench.row(
            **figures,
            frames={"at_s": run.at_s, "ms": [round(ms, 2) for ms in run.ms], "place": run.places},
        )
    found = {row["policy"]: row for row in bench.rows}
    ours, best = found.get("suture"), found.get("clairvoyant")
    baselines = [
        row for name, row in found.items() if not name.startswith("suture") and name != "clairvoyant"
    ]
    if ours is None or best is None or not baselines:
        return
    bench.target(
        "mean over the clairvoyant's", 100 * (ours["mean_ms"] / best["mean_ms"] - 1), "%", 10.0, "at_most"
    )
    bench.target("p99 over the least of the baselines'",
                 ours["p99_ms"] / min(row["p99_ms"] for row in baselines), "x", 1.0, "at_most")  # fmt: skip
    for limit in _LIMITS_MS:
        key = f"over_{limit:g}_ms_pct"
        least = min(row[key] for row in baselines)
        bench.target(f"frames over {limit:g} ms, beside the least of the baselines'", ours[key] - least,
                     "points", 0.0, "at_most")  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
