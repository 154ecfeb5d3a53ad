"""What it costs to get an activation to a replica and an answer back, when nothing is computed there.

In one Ray cluster and interleaved request by request, in random order, the product's path (the agent's link,
gateway, replica, and back) against

- the same with ``DeploymentHandle.remote`` between gateway and replica,
- Serve's HTTP proxy, over one kept connection,
- a bare pyzmq socket to one other process,
- and, for comparison only, a handle called in this very process, without a device and a gateway.

Device, gateways, replicas, proxy and echo are processes of their own; the device's has no Ray in it.
"""

from __future__ import annotations

import http.client
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.child import Child, free_ports, run
from bench.contract import Bench, spread
from bench.hop_reply import check_reply
from bench.ray_cluster import RayCluster

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["main"]

_SIZES = {"1 kB": 1_000, "150 kB": 150_000, "1 MB": 1_000_000}
_OURS, _HANDLE, _HTTP, _ECHO = "suture", "gateway + handle", "http proxy", "pyzmq echo"
_HANDLE_ALONE = "handle alone"
_LIMITS = ((_HANDLE, 0.25), (_HTTP, 0.25), (_ECHO, 4.0))

Hop = Callable[[int], Awaitable[float]]


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("hop", argv, description=(__doc__ or "").partition("\n")[0])
    bench.config = {"bytes": _SIZES, "requests": 30 if bench.quick else 300, "warm_up": 10}
    run(_run(bench))
    return bench.finish()


async def _run(bench: Bench) -> None:
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-")))
        with bench.console.status("starting Ray, Serve and the other processes ..."):
            gateway_ms: dict[int, list[float]] = {nbytes: [] for nbytes in _SIZES.values()}
            paths = await _start(stack, scratch, gateway_ms)
        samples: dict[tuple[str, str], list[float]] = {(size, path): [] for size in _SIZES for path in paths}
        rounds = bench.config["warm_up"] + bench.config["requests"]
        # In another order every round: what comes behind Ray's freeing of a megabyte is slower for it.
        order, rng = list(samples), random.Random(bench.seed)
        for number in bench.track(range(rounds), "requests"):
            rng.shuffle(order)
            for size, name in order:
                elapsed_ms = await paths[name](_SIZES[size])
                if number >= bench.config["warm_up"]:
                    samples[size, name].append(elapsed_ms)
    _judge(bench, samples)
    for size, nbytes in _SIZES.items():
        inside = spread(gateway_ms[nbytes][bench.config["warm_up"] :])
        bench.row(activation=size, path=f"{_OURS}: from the gateway on", **inside)


def _judge(bench: Bench, samples: dict[tuple[str, str], list[float]]) -> None:
    figures = {key: spread(values) for key, values in samples.items()}
    for (size, name), row in figures.items():
        ratio = figures[size, _OURS]["p50_ms"] / row["p50_ms"]
        bench.row(activation=size, path=name, **row, suture_over_this=ratio)
    for size in _SIZES:
        for name, limit in _LIMITS:
            ratio = figures[size, _OURS]["p50_ms"] / figures[size, name]["p50_ms"]
            bench.target(f"{size}: p50 over that of {name}", ratio, "x", limit, "at_most")


async def _start(stack: AsyncExitStack, scratch: Path, gateway_ms: dict[int, list[float]]) -> dict[str, Hop]:
    """The paths, ready; each sends so many bytes and returns ms, or raises on a wrong answer.

    The product's also appends to ``gateway_ms``, by size, what passed between the gateway's receiving the
    request and its sending the answer.
    """
    cluster = await RayCluster.start(scratch)
    stack.push_async_callback(cluster.stop)
    [http_port] = free_ports(1)
    gateway, handle_gateway, handle = _deploy(stack, cluster, http_port)
    echo = await Child.start("echo", [sys.executable, "-m", "bench.hop_device", "echo"], scratch / "echo.log")
    stack.push_async_callback(echo.stop)
    echo_endpoint = (await echo.ready())["endpoint"]
    argv = [sys.executable, "-m", "bench.hop_device", gateway]
    device = await Child.start("device", argv, scratch / "device.log")
    stack.push_async_callback(device.stop)
    await device.ready()

    connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=30)
    stack.callback(connection.close)

    async def by_link(size: int) -> float:
        measured = await device.call("link", size=size)
        gateway_ms[size].append(measured["gateway_ms"])
        return float(measured["ms"])

    async def by_handle(size: int) -> float:
        return float(await device.call("plain", endpoint=handle_gateway, size=size))

    async def by_echo(size: int) -> float:
        return float(await device.call("plain", endpoint=echo_endpoint, size=size))

    async def by_handle_alone(size: int) -> float:
        payload = bytes(size)
        started_s = time.perf_counter()
        reply = await handle.infer.remote(payload)
        elapsed_ms = (time.perf_counter() - started_s) * 1000
        check_reply(size, reply)
        return elapsed_ms

    async def by_http(size: int) -> float:
        # Blocking the loop is fine: nothing else is to happen meanwhile.
        payload = bytes(size)
        started_s = time.perf_counter()
        connection.request("POST", "/http", payload)
        reply = connection.getresponse().read()
        elapsed_ms = (time.perf_counter() - started_s) * 1000
        check_reply(size, reply)
        return elapsed_ms

    return {
        _OURS: by_link,
        _HANDLE: by_handle,
        _HTTP: by_http,
        _ECHO: by_echo,
        _HANDLE_ALONE: by_handle_alone,
    }


def _deploy(
    stack: AsyncExitStack, cluster: RayCluster, http_port: int
) -> tuple[str, str, DeploymentHandle[Any]]:
    """Join the cluster and start the applications.

    Returns where devices connect to the product's gateway, to that with a handle, and a plain handle.
    """
    # First: importing Ray reads its settings, the cluster's secret among them.
    os.environ.update(cluster.environment)
    import ray
    from ray import serve

    from bench.hop_app import cloud, through_handle, through_http

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    # Before the cluster is ended: a driver that loses its cluster ends its own process.
    stack.callback(ray.shutdown)
    serve.start(http_options={"host": "127.0.0.1", "port": http_port})
    application, gateway = cloud()
    serve.run(application, name="suture", route_prefix="/suture")
    application, handle_gateway = through_handle()
    serve.run(application, name="handle", route_prefix="/handle")
    return gateway, handle_gateway, serve.run(through_http(), name="http", route_prefix="/http")


if __name__ == "__main__":
    raise SystemExit(main())
