"""All that the demo needs running: Ray, the Serve application, the link and the slow agent.

Every part is a process of its own, as in real life, and all of them are ended however the body ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.child import Child, ChildError, free_ports
from bench.link_process import LinkProcess
from bench.ray_cluster import RayCluster

__all__ = ["Stage", "running_stage"]

_SERVE = [str(Path(sys.executable).with_name("serve"))]
_PATIENCE_S = 120.0
_POLL_S = 0.2
_NEAR = 1.5


@dataclass(frozen=True, slots=True)
class Stage:
    """``socket`` is where the agent's clients connect; ``facts`` is what the agent knows of ``model``."""

    link: LinkProcess
    agent: Child
    socket: str
    facts: dict[str, Any]

    async def wait_for_link(self, state: str, timeout_s: float = 30.0) -> None:
        """Until the agent's link is in this state.  Raises ChildError."""
        give_up_s = time.monotonic() + timeout_s
        while (seen := await self.agent.call("link"))["state"] != state:
            if time.monotonic() > give_up_s:
                raise ChildError(f"the agent's link is {seen['state']}, not {state}: {seen['reason']}")
            await asyncio.sleep(_POLL_S)

    async def wait_for_uplink(self, model: str, mbps: float, timeout_s: float = 15.0) -> None:
        """Until the agent's estimate is near the link's rate, by its own idle probes, or time is up."""
        await self.wait_for_link("online")
        give_up_s = time.monotonic() + timeout_s
        while time.monotonic() < give_up_s:
            believed_mbps = await self.agent.call("uplink_mbps", model=model)
            if 1 / _NEAR < believed_mbps / mbps < _NEAR:
                return
            await asyncio.sleep(_POLL_S)


@contextlib.asynccontextmanager
async def running_stage(
    model: str, *, stretch: float, delay_ms: float, calibration: str, say: Callable[[str], None]
) -> AsyncIterator[Stage]:
    """Start everything, told step by step through ``say``; the link begins without a limit.

    ``calibration`` is the factory of the agent's typical inputs, ``package.module:function``.

    Raises ChildError with the log of what did not start.
    """
    with contextlib.ExitStack() as calm:
        async with contextlib.AsyncExitStack() as stack:
            try:
                # A short path, because Ray puts Unix sockets below it, whose names may not be long.
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-")))
                ports = await _start_cloud(stack, scratch, model, say)
                yield await _start_device(stack, scratch, model, ports, stretch, delay_ms, calibration, say)
            finally:
                say("ending everything that was started")
                calm.enter_context(_no_interrupts())


async def _start_cloud(
    stack: contextlib.AsyncExitStack, scratch: Path, model: str, say: Callable[[str], None]
) -> tuple[int, int]:
    """The gateway's ports for devices and for the load feed, once it has a replica of ``model``."""
    say("starting Ray")
    ray = await RayCluster.start(scratch)
    stack.push_async_callback(ray.stop)
    say("serve run cloud_cluster")
    # All ports are free ones, that of Serve's proxy included: 8000 is many people's.
    device_port, replica_port, load_port, http_port = free_ports(4)
    log = scratch / "serve.log"
    options = ["--http-host=127.0.0.1", f"--http-port={http_port}"]
    start = await Child.start(
        "serve start", [*_SERVE, "start", *options], log, env=ray.environment, controlled=False
    )
    stack.push_async_callback(start.stop, 1.0)
    if await start.wait(_PATIENCE_S) != 0:
        raise ChildError(f"serve start ended with code {start.returncode}{start.tail()}")
    environment = {
        **ray.environment,
        "SUTURE_GATEWAY__DEVICE_PORT": str(device_port),
        "SUTURE_GATEWAY__REPLICA_PORT": str(replica_port),
        "SUTURE_GATEWAY__LOAD_PORT": str(load_port),
        "SUTURE_CACHE_DIR": str(scratch / "cloud"),
    }
    serve = await Child.start(
        "serve run", [*_SERVE, "run", "cloud_cluster"], log, env=environment, controlled=False
    )
    stack.push_async_callback(serve.stop, 1.0)
    await _wait_until_served(serve, model, f"http://127.0.0.1:{http_port}/status")
    return device_port, load_port


async def _start_device(
    stack: contextlib.AsyncExitStack,
    scratch: Path,
    model: str,
    ports: tuple[int, int],
    stretch: float,
    delay_ms: float,
    calibration: str,
    say: Callable[[str], None],
) -> Stage:
    """The link to the cloud's ``ports``, and behind it the agent, once that is online."""
    say("starting the link")
    upstreams = [("127.0.0.1", port) for port in ports]
    link = await LinkProcess.start(upstreams, scratch / "link.log", delay_ms=delay_ms)
    stack.push_async_callback(link.stop)
    say("starting the agent: it loads the network and measures its units")
    gateway, feed = (f"tcp://127.0.0.1:{port}" for port in link.ports)
    config = {
        "name": "demo",
        "threads": 1,
        # Ray opens its directory to everyone; the agent makes itself one that only its user can write.
        "socket": f"ipc://{scratch}/own/agent.sock",
        "cache_dir": str(scratch / "device"),
        "cloud": {"gateway": gateway, "load_feed": feed},
        "models": [{"name": model, "calibration": {"factory": calibration}}],
    }
    path = scratch / "agent.yaml"
    await asyncio.to_thread(path.write_text, yaml.safe_dump(config))
    argv = [sys.executable, "-m", "bench.slow_agent", "--config", str(path), f"--stretch={stretch}"]
    agent = await Child.start("the agent", argv, scratch / "agent.log")
    stack.push_async_callback(agent.stop)
    socket_path = str((await agent.ready(_PATIENCE_S))["socket"])
    stage = Stage(link, agent, socket_path, (await agent.call("facts"))[model])
    await stage.wait_for_link("online")
    return stage


async def _wait_until_served(serve: Child, model: str, status: str) -> None:
    """Until the gateway itself says that a replica is there: `serve run` may fail with code 0."""
    give_up_s = time.monotonic() + _PATIENCE_S
    while not await asyncio.to_thread(_replicas_ready, model, status):
        if serve.returncode is not None:
            raise ChildError(f"serve run ended with code {serve.returncode}{serve.tail()}")
        if time.monotonic() > give_up_s:
            raise ChildError(f"no replica of {model} in {_PATIENCE_S:g} s{serve.tail()}")
        await asyncio.sleep(_POLL_S)


def _replicas_ready(model: str, status: str) -> int:
    try:
        with urllib.request.urlopen(status, timeout=2) as answer:
            return int(json.load(answer)["models"][model]["ready"])
    except (OSError, urllib.error.URLError, ValueError, KeyError):
        # Not there yet; what is wrong for good ends in the time limit, with serve's own log.
        return 0


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """A first Ctrl-C while everything is being ended anyway must not leave a cluster behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
