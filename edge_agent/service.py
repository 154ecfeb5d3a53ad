"""The agent as a process: from its configuration to the signal that ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import AsyncExitStack
from importlib.metadata import version

import torch

from edge_agent.agent import EdgeAgent, RunnerFactory
from edge_agent.metrics import MetricsServer
from edge_agent.notify import ServiceManager
from edge_agent.progress import TerminalProgress
from edge_agent.runner import Runner
from shared.config import AgentConfig

__all__ = ["banner", "serve"]

log = logging.getLogger("suture.agent")

_DIGEST_LENGTH = len("sha256:") + 8


async def serve(config: AgentConfig, *, runner_factory: RunnerFactory = Runner) -> None:
    """Run the agent until SIGINT or SIGTERM, then drain it and return.

    A second signal ends the process at once, as that signal does.  A service manager is told when requests
    are served, that the event loop turns, and of the end.  Raises what entering an agent raises.
    """
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    assert this is not None
    received: list[signal.Signals] = []
    manager = ServiceManager()

    def stop(number: signal.Signals) -> None:
        received.append(number)
        for each in _ENDING:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        log.info("stopping on %s; requests in flight have %g s to end", number.name, config.drain_s)
        manager.stopping()
        this.cancel()

    for number in _ENDING:
        loop.add_signal_handler(number, stop, number)
    try:
        with TerminalProgress() as progress:
            agent = EdgeAgent.from_config(
                config, runner_factory=runner_factory, serve=True, progress=progress
            )
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(agent)
                if config.metrics is not None:
                    stack.enter_context(MetricsServer(agent, config.metrics.host, config.metrics.port))
                progress.stop()
                _announce(agent)
                manager.ready(f"{', '.join(agent.models)}; cloud {agent.link_state}")
                await manager.keep_alive()
                await loop.create_future()  # until the signal cancels this task
    except asyncio.CancelledError:
        if not received:
            raise
    log.info("stopped")


_ENDING = (signal.SIGINT, signal.SIGTERM)


def _announce(agent: EdgeAgent) -> None:
    if sys.stderr.isatty():
        print(banner(agent), file=sys.stderr, flush=True)
        return
    log.info(
        "ready",
        extra={
            "socket": agent.config.socket,
            "device": agent.config.device,
            "link": str(agent.link_state),
            "link_reason": agent.link_reason,
            "models": [
                {
                    "name": name,
                    "digest": agent.graph(name).digest,
                    "units": len(agent.graph(name).units),
                    "plan": str(agent.decision(name)),
                }
                for name in agent.models
            ],
        },
    )


def banner(agent: EdgeAgent) -> str:
    """What a person wants to see at the start: networks, first plans, link and socket."""
    config = agent.config
    threads = config.threads or torch.get_num_threads()
    lines = [f"suture {version('suture')}: agent {config.name} on {config.device}, {threads} torch threads"]
    for name in agent.models:
        graph = agent.graph(name)
        lines.append(f"  {name}  {graph.digest[:_DIGEST_LENGTH]}  {len(graph.units)} units")
        lines.append(f"    first plan  {agent.decision(name)}")
    lines.append(f"  cloud   {agent.link_state}: {agent.link_reason}")
    lines.append(f"  socket  {config.socket}")
    return "\n".join(lines)
