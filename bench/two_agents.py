"""An agent that decides, and one at which candidates are pinned, on the same slow device.

The subject learns from its own requests, pings, probes and load reports alone; the reference has a link of
its own to the same gateway, so that neither learns from the other's requests, and shares the subject's
compute.  Both run in this process, each link in another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.child import ChildError
from bench.judge import Judge
from bench.link_process import LinkProcess
from bench.stretch import RepeatingRunner
from edge_agent.agent import EdgeAgent
from edge_agent.decision import Decision
from edge_agent.link import LinkState
from edge_agent.result import Result
from shared.codec.network_tables import NetworkTables
from shared.config import AgentConfig
from shared.errors import PlanError
from shared.graph import CapturedModel, Graph
from shared.plan.rows import Rows

__all__ = ["SharedRunner", "TwoAgents", "enter_agents", "row_of"]

_DEADLINE_MS = 60_000.0
_LONGER_S, _STEADY = 3.0, 4
"""How much longer the subject is left alone when it wavers, and after how many like choices it does not."""
_ONLINE_TRIES, _ONLINE_WAIT_S = 200, 0.05


class SharedRunner(RepeatingRunner):
    """One worker and one set of programs for both agents."""

    async def load(self, name: str, captured: CapturedModel, tables: NetworkTables | None = None) -> Graph:
        if name in self._programs:
            return self.program(name).graph
        return await super().load(name, captured, tables)


@dataclass(slots=True)
class TwoAgents:
    """``complaints`` says of wrong answers, ``strays`` of requests that did not run as they were pinned."""

    links: tuple[LinkProcess, ...]
    runner: SharedRunner
    subject: EdgeAgent
    reference: EdgeAgent
    judge: Judge
    rng: random.Random
    complaints: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)

    async def set_rate(self, mbps: float) -> None:
        for link in self.links:
            await link.set_rate(mbps)

    def slow_down(self, factor: int) -> None:
        """Another device, as it would have measured itself."""
        self.runner.factor = factor
        for agent in (self.subject, self.reference):
            for name, profile in self.runner.profiles.items():
                agent.pipeline.controller.on_measured(
                    name, agent.pipeline.now_ms(), profile=profile.stretched(factor)
                )

    async def settle(self, network: str, seconds: float) -> dict[str, Any]:
        """Ask the subject for this long, and a little longer while its choice changes."""
        began_s = time.monotonic()
        seen: list[tuple[str, str]] = []
        while True:
            result = await self.ask(network)
            seen.append((result.cut, result.codec))
            elapsed_s = time.monotonic() - began_s
            steady = len(seen) >= _STEADY and len(set(seen[-_STEADY:])) == 1
            if elapsed_s > seconds + (0.0 if steady else _LONGER_S):
                return {"requests": len(seen), "seconds": elapsed_s, "steady": steady}

    async def ask(self, network: str, objective: str | Mapping[str, Any] | None = None) -> Result:
        """One request of the subject's own choice, with its answer checked.  Raises PlanError where the
        objective sets a limit that cannot be kept now."""
        return await self._ask(self.subject, network, objective)

    async def ask_pinned(self, network: str, rows: Rows, row: int) -> Result | None:
        """One request at this candidate of the subject's; None, and a stray, where it ran elsewhere."""
        cut = rows.cut_of(row)
        try:
            self.reference.pin(network, cut, rows.codecs_of(row) or rows.codec_of(row))
        except PlanError as error:  # a mix of codecs that another profile would not consider
            self.strays.append(str(error))
            return None
        result = await self._ask(self.reference, network, None)
        if (result.cut, result.codec) != (cut.name, rows.label_of(row)) or result.fallback:
            self.strays.append(
                f"{network} ran at {result.cut}, not {cut.name}: {result.fallback or 'no link'}"
            )
            return None
        return result

    async def _ask(self, agent: EdgeAgent, network: str, objective: str | Mapping[str, Any] | None) -> Result:
        args, kwargs = agent.models[network].example
        result = await agent.infer(network, *args, deadline_ms=_DEADLINE_MS, objective=objective, **kwargs)
        complaint = self.judge.complaint(network, result)
        if complaint:
            self.complaints.append(complaint)
        return result


async def enter_agents(
    stack: contextlib.AsyncExitStack,
    networks: Sequence[str],
    endpoints: Sequence[str],
    scratch: Path,
    judge: Judge,
    *,
    delay_ms: float,
    seed: int,
    power: Mapping[str, Any] | None = None,
) -> TwoAgents:
    """Both, online, behind unlimited links of this one-way delay to the gateway and load feed of
    ``endpoints``; ``power`` is that section of their configuration.  Raises ChildError."""
    runner = SharedRunner(1, "cpu", 1)
    agents, links = [], []
    upstreams = [("127.0.0.1", urlsplit(endpoint).port or 0) for endpoint in endpoints]
    for name in ("subject", "reference"):
        # A link each: heartbeats of the one must not wait behind payloads of the other.
        link = await LinkProcess.start(upstreams, scratch / f"{name}-link.log", delay_ms=delay_ms)
        stack.push_async_callback(link.stop)
        links.append(link)
        gateway, feed = (f"tcp://127.0.0.1:{port}" for port in link.ports)
        config = AgentConfig.model_validate(
            {
                "name": name,
                "threads": 1,
                "cloud": {"gateway": gateway, "load_feed": feed},
                "power": dict(power or {}),
                "models": [{"name": network} for network in networks],
                "cache_dir": str(scratch / "device"),
            }
        )
        agent = EdgeAgent.from_config(config, runner_factory=lambda device, threads: runner)
        agents.append(await stack.enter_async_context(agent))
        await agent.caught_up()  # every candidate is judged, and nothing of that comes between two requests
    await _wait_online(agents)
    return TwoAgents(tuple(links), runner, agents[0], agents[1], judge, random.Random(seed))


async def _wait_online(agents: Sequence[EdgeAgent]) -> None:
    """What held the interpreter's lock for long may have cost a link."""
    for _ in range(_ONLINE_TRIES):
        if all(agent.link_state is LinkState.ONLINE for agent in agents):
            return
        await asyncio.sleep(_ONLINE_WAIT_S)
    raise ChildError(f"no link: {', '.join(agent.link_reason for agent in agents)}")


def row_of(result: Result, decision: Decision) -> int | None:
    """The candidate that a request ran as; None for one that there was not when candidates were listed."""
    rows = decision.rows
    for row in range(len(rows)):
        if (rows.cut_of(row).name, rows.label_of(row)) == (result.cut, result.codec):
            return row
    return None
