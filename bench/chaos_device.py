"""The device of the chaos bench: a real agent of a slower device, and an application in its own process.

``python -m bench.chaos_device CONFIG STRETCH ANSWERS HISTORY`` is a controlled child.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench.chaos_load import Answers, History, Load
from bench.child import answer
from bench.stretch import SteadyRunner
from edge_agent.agent import EdgeAgent
from edge_agent.guard import Guard
from shared.config import AgentConfig, load_config

__all__ = ["NO_GUARD"]

NO_GUARD = Guard(slack_ms=-math.inf, overdue_ms=math.inf)
"""Its last moment to start on the device never comes."""


async def _serve(config: AgentConfig, stretch: float, answers: Answers, history: History) -> None:
    (name,) = (model.name for model in config.models)
    runner = partial(SteadyRunner, stretch)
    async with EdgeAgent.from_config(config, runner_factory=runner, serve=True) as agent:
        table = agent.pipeline.table
        guarded = table.guard
        application = Load("in-process", partial(agent.infer, name), answers, history)

        async def load(seconds: float, per_s: float, seed: int, deadline_ms: float, guard: bool) -> None:
            table.guard = guarded if guard else NO_GUARD
            await application.run(seconds, per_s, seed, deadline_ms, guard)

        async def alone(count: int) -> list[float]:
            agent.pin(name, len(agent.graph(name).cuts) - 1)
            took_ms = [
                (await agent.infer(name, answers.input(number), deadline_ms=60_000)).latency_ms
                for number in range(count)
            ]
            agent.unpin(name)
            if config.models[0].cut is not None:
                agent.pin(name, config.models[0].cut)
            return took_ms

        def facts() -> dict[str, Any]:
            rows = agent.pipeline.controller.rows(name)
            counters = table.counters
            return {
                "cloud_ms": float(rows.cloud_ms.max()),
                "link": str(agent.link_state),
                "remote": not agent.decision(name).is_local,
                "held": len(table),
                "counters": {field: getattr(counters, field) for field in counters.__slots__},
            }

        await answer({"load": load, "alone": alone, "facts": facts}, {"socket": config.socket})


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config_path, factor, answers_path, history_path = sys.argv[1:]
    asyncio.run(
        _serve(
            load_config(AgentConfig, config_path),
            float(factor),
            Answers(Path(answers_path)),
            History(Path(history_path)),
        )
    )
