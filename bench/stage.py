"""All that the demo needs running: Ray, the Serve application, the link and the slow agent.

Every part is a process of its own, as in real life, and all of them are ended however the body ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
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
from shared.errors import StartupError

__all__ = ["Stage", "running_stage"]

_SERVE_HTTP_PORT = 8000
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
    model: str, *, stretch: float, delay_ms: float, say: Callable[[str], None]
) -> AsyncIterator[Stage]:
    """Start everything, told step by step through ``say``; the link begins without a limit.

    Raises StartupError or ChildError.
    """
    _require_free(_SERVE_HTTP_PORT)
    with contextlib.ExitStack() as calm:
        async with contextlib.AsyncExitStack() as stack:
            try:
                # A short path, because Ray puts Unix sockets below it, whose names may not be long.
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-")))
                ports = await _start_cloud(stack, scratch, model, say)
                yield await _start_device(stack, scratch, model, ports, stretch, delay_ms, say)
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
    device_port, replica_port, load_port = free_ports(3)
    environment = {
        **ray.environment,
        "SUTURE_GATEWAY__DEVICE_PORT": str(device_port),
        "SUTURE_GATEWAY__REPLICA_PORT": str(replica_port),
        "SUTURE_GATEWAY__LOAD_PORT": str(load_port),
        "SUTURE_CACHE_DIR": str(scratch / "cloud"),
    }
    command = [str(Path(sys.executable).with_name("serve")), "run", "cloud_cluster"]
    serve = await Child.start(
        "serve run cloud_cluster", command, scratch / "serve.log", env=environment, controlled=False
    )
    stack.push_async_callback(serve.stop, 1.0)
    await _wait_until_served(serve, model)
    return device_port, load_port


async def _start_device(
    stack: contextlib.AsyncExitStack,
    scratch: Path,
    model: str,
    ports: tuple[int, int],
    stretch: float,
    delay_ms: float,
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
        "socket": f"ipc://{scratch}/agent.sock",
        "cache_dir": str(scratch / "device"),
        "cloud": {"gateway": gateway, "load_feed": feed},
        "models": [{"name": model}],
    }
    path = scratch / "agent.yaml"
    await asyncio.to_thread(path.write_text, yaml.safe_dump(config))
    argv = [sys.executable, "-m", "bench.slow_agent", "--config", str(path), f"--stretch={stretch}"]
    agent = await Child.start("the agent", argv, scratch / "agent.log")
    stack.push_async_callback(agent.stop)
    socket_path = str((await agent.ready(timeout_s=120.0))["socket"])
    stage = Stage(link, agent, socket_path, (await agent.call("facts"))[model])
    await stage.wait_for_link("online")
    return stage


def _require_free(port: int) -> None:
    try:
        with socket.create_server(("127.0.0.1", port)):
            pass
    except OSError as error:
        raise StartupError(
            f"port {port}, which Ray Serve's HTTP proxy needs, is in use ({error.strerror}); end what "
            "listens there, e.g. another Serve application, and start again"
        ) from error


async def _wait_until_served(serve: Child, model: str, timeout_s: float = 120.0) -> None:
    """Until the gateway itself says that a replica is there: `serve run` may fail with code 0."""
    give_up_s = time.monotonic() + timeout_s
    while not await asyncio.to_thread(_replicas_ready, model):
        if serve.returncode is not None:
            raise ChildError(f"serve run ended with code {serve.returncode}{serve.tail()}")
        if time.monotonic() > give_up_s:
            raise ChildError(f"no replica of {model} in {timeout_s:g} s{serve.tail()}")
        await asyncio.sleep(_POLL_S)


def _replicas_ready(model: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{_SERVE_HTTP_PORT}/status", timeout=2) as answer:
            return int(json.load(answer)["models"][model]["ready"])
    except (OSError, urllib.error.URLError, ValueError, KeyError):
        # Not there yet; what is wrong for good ends in the time limit, with serve's own log.
        return 0


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """A second Ctrl-C while everything is being ended must not leave a cluster behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
