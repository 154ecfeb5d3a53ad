"""What it costs to get an activation to a replica and an answer back, when nothing is computed there.

In one Ray cluster and interleaved request by request: the product's path (the agent's link, gateway,
replica, and back) against the same bytes through ``DeploymentHandle.remote``, through Serve's HTTP proxy,
and through a bare pyzmq socket to one other process.  Every process is one of its own, and each path is
driven from where it is cheapest: the link and the bare socket from a process without Ray, the handle from
a Ray driver's event loop, HTTP over one kept connection.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.child import Child, free_ports
from bench.contract import Bench, spread
from bench.hop_reply import size_of
from bench.ray_cluster import RayCluster

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["main"]

_SIZES = {"1 kB": 1_000, "150 kB": 150_000, "1 MB": 1_000_000}
_OURS, _HANDLE, _HTTP, _ECHO = "suture", "handle", "http", "pyzmq echo"
_LIMITS = ((_HANDLE, 0.25), (_HTTP, 0.25), (_ECHO, 4.0))

Hop = Callable[[int], Awaitable[float]]


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("hop", argv, description=(__doc__ or "").partition("\n")[0])
    bench.config = {"bytes": _SIZES, "requests": 30 if bench.quick else 300, "warm_up": 10}
    asyncio.run(_run(bench))
    return bench.finish()


async def _run(bench: Bench) -> None:
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-")))
        with bench.console.status("starting Ray, Serve and the other processes ..."):
            paths = await _start(stack, scratch)
        samples: dict[tuple[str, str], list[float]] = {(size, path): [] for size in _SIZES for path in paths}
        rounds = bench.config["warm_up"] + bench.config["requests"]
        for number in bench.track(range(rounds), "requests"):
            for size, nbytes in _SIZES.items():
                for name, path in paths.items():
                    elapsed_ms = await path(nbytes)
                    if number >= bench.config["warm_up"]:
                        samples[size, name].append(elapsed_ms)
    _judge(bench, samples)


def _judge(bench: Bench, samples: dict[tuple[str, str], list[float]]) -> None:
    figures = {key: spread(values) for key, values in samples.items()}
    for (size, name), row in figures.items():
        ratio = figures[size, _OURS]["p50_ms"] / row["p50_ms"]
        bench.row(activation=size, path=name, **row, suture_over_this=ratio)
    for size in _SIZES:
        for name, limit in _LIMITS:
            ratio = figures[size, _OURS]["p50_ms"] / figures[size, name]["p50_ms"]
            bench.target(f"{size}: p50 over that of {name}", ratio, "x", limit, "at_most")


async def _start(stack: AsyncExitStack, scratch: Path) -> dict[str, Hop]:
    """The four paths, ready; each sends so many bytes and returns ms, or raises on a wrong answer."""
    cluster = await RayCluster.start(scratch)
    stack.push_async_callback(cluster.stop)
    [http_port] = free_ports(1)
    gateway, handle = _deploy(stack, cluster, http_port)
    echo = await Child.start("echo", [sys.executable, "-m", "bench.hop_device", "echo"], scratch / "echo.log")
    stack.push_async_callback(echo.stop)
    endpoint = (await echo.ready())["endpoint"]
    argv = [sys.executable, "-m", "bench.hop_device", gateway, endpoint]
    device = await Child.start("device", argv, scratch / "device.log")
    stack.push_async_callback(device.stop)
    await device.ready()

    connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=30)
    stack.callback(connection.close)

    async def by_link(size: int) -> float:
        return float(await device.call("link", size=size))

    async def by_echo(size: int) -> float:
        return float(await device.call("echo", size=size))

    async def by_handle(size: int) -> float:
        payload = bytes(size)
        started_s = time.perf_counter()
        reply = await handle.infer.remote(payload)
        return _checked(size, reply, started_s)

    async def by_http(size: int) -> float:
        # Blocking the loop is fine: nothing else is to happen meanwhile.
        payload = bytes(size)
        started_s = time.perf_counter()
        connection.request("POST", "/baseline", payload)
        reply = connection.getresponse().read()
        return _checked(size, reply, started_s)

    return {_OURS: by_link, _HANDLE: by_handle, _HTTP: by_http, _ECHO: by_echo}


def _deploy(stack: AsyncExitStack, cluster: RayCluster, http_port: int) -> tuple[str, DeploymentHandle[Any]]:
    """Join the cluster and start both applications: where devices connect, and the baseline's handle."""
    import ray
    from ray import serve

    from bench.hop_app import baseline, cloud

    os.environ.update(cluster.environment)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    # Before the cluster is ended: a driver that loses its cluster ends its own process.
    stack.callback(ray.shutdown)
    serve.start(http_options={"host": "127.0.0.1", "port": http_port})
    application, gateway = cloud()
    serve.run(application, name="suture", route_prefix="/suture")
    return gateway, serve.run(baseline(), name="baseline", route_prefix="/baseline")


def _checked(size: int, reply: bytes, started_s: float) -> float:
    elapsed_ms = (time.perf_counter() - started_s) * 1000
    if size_of(reply) != size:
        raise ValueError(f"sent {size} bytes, but the other side saw {size_of(reply)}")
    return elapsed_ms


if __name__ == "__main__":
    raise SystemExit(main())
