"""Real agents of slower devices in one process, and applications that ask them at a given rate.

``python -m bench.scale_devices GATEWAY FEED NETWORK STRETCHES CACHE`` is a controlled child.  Every device is
an :class:`edge_agent.EdgeAgent` of its own, with its own link, controller and worker thread.  STRETCHES, a
list in JSON, says how many times slower than this machine each of them is.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import zmq

from bench.child import answer
from bench.stretch import SteadyRunner
from edge_agent import EdgeAgent
from edge_agent.link import LinkState
from edge_agent.load_feed import LoadFeed
from shared.config import AgentConfig
from shared.errors import OverloadedError, SutureError
from shared.wire.messages import LoadReport

__all__ = ["main"]


class _Fleet:
    def __init__(self, agents: Sequence[EdgeAgent], network: str) -> None:
        self._agents = agents
        self._network = network
        self._began_s = time.monotonic()
        self._requests: list[dict[str, Any]] = []
        self._reports: list[dict[str, Any]] = []

    def facts(self) -> dict[str, Any]:
        """The devices' ms for the network, the cloud's, and the names of the cuts."""
        every = [agent.pipeline.controller.rows(self._network) for agent in self._agents]
        rows = every[0]
        return {
            "device_ms": [float(each.edge_ms[each.local]) for each in every],
            "cloud_ms": float(rows.cloud_ms.max()),
            "cuts": [cut.name for cut in self._agents[0].graph(self._network).cuts],
            "online": [agent.link_state is LinkState.ONLINE for agent in self._agents],
        }

    async def run(self, phases: list[list[float]], deadline_ms: float, seed: int) -> dict[str, Any]:
        """What became of every request, by its start.

        A phase is seconds and requests per second.  It has exactly as many requests as that, at random
        moments, as random arrivals are once their number is known.
        """
        chance = random.Random(seed)
        moments_s: list[float] = []
        end_s = 0.0
        for seconds, per_s in phases:
            moments_s += sorted(end_s + chance.uniform(0.0, seconds) for _ in range(round(seconds * per_s)))
            end_s += seconds
        self._began_s, self._requests, self._reports = time.monotonic(), [], []
        async with asyncio.TaskGroup() as group:
            for at_s in moments_s:
                await asyncio.sleep(max(at_s - self._now_s(), 0.0))
                late_s = self._now_s() - at_s
                group.create_task(self._ask(chance.choice(self._agents), deadline_ms, late_s))
            await asyncio.sleep(max(end_s - self._now_s(), 0.0))
        return {"requests": self._requests, "reports": self._reports}

    async def _ask(self, agent: EdgeAgent, deadline_ms: float, late_s: float) -> None:
        args, kwargs = agent.models[self._network].example
        row: dict[str, Any] = {"at_s": self._now_s(), "late_s": late_s, "deadline_ms": deadline_ms}
        self._requests.append(row)
        try:
            result = await agent.infer(self._network, *args, deadline_ms=deadline_ms, **kwargs)
        except SutureError as error:
            # What the cloud refuses the device does itself: this is the device's own word.
            by_agent = isinstance(error, OverloadedError)
            row |= {"error": f"{type(error).__name__}: {error}", "by_agent": by_agent}
        else:
            row |= {"ms": result.latency_ms, "where": str(result.where), "cut": result.cut_index}
        row["ended_s"] = self._now_s()

    def on_report(self, report: LoadReport) -> None:
        (load,) = report.models
        self._reports.append(
            {
                "at_s": self._now_s(),
                "ready": load.ready,
                "starting": load.starting,
                "target": load.target,
                "wait_ms": load.wait_ms,
                "queue_ms": load.queue_ms,
                "admitted_per_s": load.admitted_per_s,
                "refused_per_s": load.refused_per_s,
            }
        )

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s


def _bad_feed(why: str) -> None:
    raise RuntimeError(f"the load feed is none: {why}")


async def main(argv: Sequence[str]) -> None:
    gateway, feed, network, stretches, cache = argv
    async with AsyncExitStack() as stack:
        agents = []
        for number, stretch in enumerate(json.loads(stretches)):
            config = AgentConfig.model_validate(
                {
                    "name": f"device-{number}",
                    "threads": 1,
                    "cloud": {"gateway": gateway},
                    "models": [{"name": network}],
                    "cache_dir": cache,
                    "profile_repeats": 5,
                }
            )
            factory = partial(SteadyRunner, stretch)
            agents.append(
                await stack.enter_async_context(EdgeAgent.from_config(config, runner_factory=factory))
            )
        fleet = _Fleet(agents, network)
        context = zmq.Context()
        stack.callback(context.term)
        load_feed = LoadFeed(context, feed, fleet.on_report, _bad_feed)
        stack.callback(load_feed.close)
        await answer({"facts": fleet.facts, "run": fleet.run}, {})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
