"""An agent process that is slower than this machine, and that a bench can pin to one cut.

``python -m bench.slow_agent --config FILE --stretch N`` serves the configuration's socket as
``edge-agent`` does.  It is a controlled child (:mod:`bench.child`): its commands are the methods of
:class:`_Control`, and it leaves when its input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.child import answer
from bench.stretch import stretched
from edge_agent.agent import EdgeAgent
from shared.codec import Codec
from shared.config import AgentConfig, load_config
from shared.plan.latency import latency_ms

__all__ = ["main"]


class _Control:
    def __init__(self, agent: EdgeAgent) -> None:
        self._agent = agent

    def pin(self, model: str, cut: int, codec: str = "float32") -> None:
        """Use this cut and codec while the cloud can be reached."""
        self._agent.pin(model, cut, Codec.from_label(codec))

    def unpin(self, model: str) -> None:
        self._agent.unpin(model)

    def link(self) -> dict[str, str]:
        return {"state": str(self._agent.link_state), "reason": self._agent.link_reason}

    def uplink_mbps(self, model: str) -> float:
        """The estimate that the next plan rests on."""
        return self._agent.decision(model).conditions.uplink_bps / 1e6

    def best_codec(self, model: str, cut: int) -> str:
        """The codec that is predicted to be fastest at this cut now."""
        decision = self._agent.decision(model)
        rows = decision.rows
        there = np.flatnonzero((rows.cut == cut) & (rows.mix < 0))
        if not len(there):
            raise LookupError(f"{model} has no candidate at cut {cut}")
        best = there[np.argmin(latency_ms(rows, decision.conditions)[there])]
        return rows.codec_of(int(best)).label

    def facts(self) -> dict[str, Any]:
        """Per model: the names of its cuts, and the device's and the cloud's ms for the whole network."""
        known = {}
        for name in self._agent.models:
            rows = self._agent.pipeline.controller.rows(name)
            known[name] = {
                "cuts": [cut.name for cut in self._agent.graph(name).cuts],
                "device_ms": float(rows.edge_ms[rows.local]),
                "cloud_ms": float(rows.cloud_ms.max()),
            }
        return known


async def serve(config: AgentConfig, stretch: float) -> None:
    """Until the input ends."""
    async with EdgeAgent.from_config(config, runner_factory=stretched(stretch), serve=True) as agent:
        control = _Control(agent)
        commands = {name: getattr(control, name) for name in dir(control) if not name.startswith("_")}
        await answer(commands, {"socket": config.socket, "stretch": stretch})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.slow_agent")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--stretch", type=float, default=1.0, help="how many times slower compute is")
    options = parser.parse_args()
    config = load_config(AgentConfig, options.config)
    logging.basicConfig(level=config.log.upper(), stream=sys.stderr)
    asyncio.run(serve(config, options.stretch))


if __name__ == "__main__":
    main()
