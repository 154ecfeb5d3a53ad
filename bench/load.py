"""What a gateway and a replica carry: throughput against torch's own speed, tails, refusals, memory.

Many simulated devices in one process send an activation of a real cut over real ZeroMQ to the product's
gateway, in a process of its own, and to one replica in another.  There is no Ray in this: it places and
starts processes, and no request passes through it.  What torch alone does above the same cut, in the
replica's own process while nothing is asked, is measured before and after.

In turns with it, the same tail behind Ray Serve alone: asked through a ``DeploymentHandle``, and through
Serve's HTTP proxy (``bench/load_serve.py``).  Where there are two cores the replica that is asked has one and
everything else the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.child import Child, free_ports, run
from bench.contract import Bench
from bench.hop_reply import DIGEST, MODEL
from bench.ray_cluster import RayCluster

__all__ = ["main"]

_NETWORK, _QUICK_NETWORK = "resnet50", "mobilenetv2"
_LOADS, _QUICK_LOADS = (0.5, 0.8, 0.95, 3.0), (0.8, 3.0)
_MANY = 16
_OURS, _BASELINES = "suture", ("handle", "http")
_LEAST_SHARE = 0.9
_BUDGET_FACTOR = 12.0


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("load", argv, description=(__doc__ or "").partition("\n")[0], arguments=_arguments)
    cores = sorted(os.sched_getaffinity(0))
    bench.config = {
        "network": _QUICK_NETWORK if bench.quick else _NETWORK,
        "devices": [1, _MANY] if bench.quick else [1, 4, _MANY, 64, 256],
        "loads": _QUICK_LOADS if bench.quick else _LOADS,
        "seconds": 0.5 if bench.quick else 4.0,
        "replica_core": cores[0],
        "other_core": cores[-1],
        "baselines": not bench.options.without_serve,
    }
    # What this process starts, Ray above all, is where it is, unless it is told otherwise.
    os.sched_setaffinity(0, {cores[-1]})
    try:
        run(_run(bench))
    finally:
        os.sched_setaffinity(0, cores)
    return bench.finish()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--without-serve", action="store_true", help="leave the baselines behind Serve out")


async def _run(bench: Bench) -> None:
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-")))
        name = bench.config["network"]
        with bench.console.status("preparing the activation, starting gateway and replica ..."):
            digest, cut, path = _activation(name, scratch)
            config = {
                "gateway": {"device_port": 0, "replica_port": 0, "load_port": 0},
                "models": [{"name": name, "threads": 1}],
                "cache_dir": str(scratch / "cache"),
                "profile_repeats": 3,
            }
            gateway, endpoint, replica = await _cloud(bench, stack, config, "replica", scratch)
        bench.config |= {"cut": cut, "payload_bytes": path.stat().st_size}
        serve: Child | None = None
        if bench.config["baselines"]:
            with bench.console.status("starting Ray and Serve ..."):
                serve = await _serve(bench, stack, scratch, path)
        await _measure(bench, stack, gateway, replica, serve, endpoint, (name, digest, cut), path, scratch)
        await _no_op(bench, stack, path, scratch)


async def _measure(
    bench: Bench,
    stack: AsyncExitStack,
    gateway: Child,
    replica: Child,
    serve: Child | None,
    endpoint: str,
    whom: tuple[str, str, int],
    path: Path,
    scratch: Path,
) -> None:
    seconds, cut = bench.config["seconds"], whom[-1]
    baselines = [] if serve is None else [(way, serve) for way in _BASELINES]
    before = float(await replica.call("torch_speed", cut=cut, seconds=seconds))
    fastest = dict.fromkeys((_OURS, *_BASELINES), 0.0)
    for count in bench.track(bench.config["devices"], "closed loops"):
        devices = await _devices(bench, stack, endpoint, (*whom, count), path, scratch)
        spent = await gateway.call("usage")
        found = await devices.call("closed", seconds=seconds, in_flight=2, budget_ms=30_000.0)
        after = await gateway.call("usage")
        _row(bench, f"closed loop, {count} devices", found, spent, after)
        fastest[_OURS] = max(fastest[_OURS], found["per_s"])
        await devices.stop()
        for way, clients in baselines if count == _MANY else ():
            found = await clients.call("closed", way=way, seconds=seconds, in_flight=2 * count)
            _row(bench, f"closed loop, {count} devices", found, way=way)
            fastest[way] = found["per_s"]
    torch_after = float(await replica.call("torch_speed", cut=cut, seconds=seconds))
    torch_per_s = statistics.fmean((before, torch_after))
    budget_ms = 1e3 / torch_per_s * _BUDGET_FACTOR
    bench.config |= {"torch_per_s": [before, torch_after], "budget_ms": budget_ms}
    share = fastest[_OURS] / torch_per_s
    bench.target("throughput at saturation over torch alone", share, "x", _LEAST_SHARE, "at_least")
    for way, _ in baselines:
        ratio = fastest[_OURS] / fastest[way]
        bench.target(f"throughput at saturation over that behind {way}", ratio, "x", 1.0, "at_least")

    devices = await _devices(bench, stack, endpoint, (*whom, _MANY), path, scratch)
    for load in bench.track(bench.config["loads"], "open loops"):
        asked = {"seconds": 2 * seconds, "rate_hz": load * fastest[_OURS], "seed": bench.seed}
        what = f"open loop, {load:.0%} of capacity"
        spent = await gateway.call("usage")
        found = await devices.call("open", **asked, budget_ms=budget_ms)
        after = await gateway.call("usage")
        row = _row(bench, what, found, spent, after, budget_ms=budget_ms)
        bench.target(f"{load:.0%} of capacity: p99 of accepted", row["p99_ms"], "ms", budget_ms, "at_most")
        if load > 1:
            grown_mb = after["rss_mb"] - spent["rss_mb"]
            bench.target("overload: gateway's memory grows by", grown_mb, "MB", 20.0, "at_most")
            quickest = bench.rows[0]["p50_ms"] or 0.0
            bench.target("overload: median refusal", row["refused_p50_ms"], "ms", quickest, "at_most")
        for way, clients in baselines:
            found = await clients.call("open", way=way, **asked, timeout_s=300.0)
            other = _row(bench, what, found, budget_ms=budget_ms, way=way)
            ratio = row["in_time_per_s"] / max(other["in_time_per_s"], 1e-9)
            name = f"{load:.0%} of capacity: answers in time over those behind {way}"
            # Below capacity both are to answer all: 2% is what the chance of arrivals makes of that.
            bench.target(name, ratio, "x", 1.0 if load > 1 else 0.98, "at_least")


async def _no_op(bench: Bench, stack: AsyncExitStack, path: Path, scratch: Path) -> None:
    """The gateway alone: a replica that computes nothing."""
    config = {
        "gateway": {"device_port": 0, "replica_port": 0, "load_port": 0},
        "models": [{"name": MODEL}],
        "cache_dir": str(scratch / "cache"),
    }
    gateway, endpoint, _ = await _cloud(bench, stack, config, "no-op", scratch)
    devices = await _devices(bench, stack, endpoint, (MODEL, DIGEST, 0, 16), path, scratch)
    spent = await gateway.call("usage")
    found = await devices.call("closed", seconds=bench.config["seconds"], in_flight=2, budget_ms=30_000.0)
    _row(bench, "nothing to compute, 16 devices", found, spent, await gateway.call("usage"))


def _row(
    bench: Bench,
    what: str,
    found: dict[str, Any],
    before: dict[str, float] | None = None,
    after: dict[str, float] | None = None,
    *,
    way: str = _OURS,
    budget_ms: float = math.inf,
) -> dict[str, Any]:
    """``before`` and ``after`` are what the gateway had used; the baselines have none."""
    accepted = [ms for ms, code in found["answers"] if code == 0]
    refused = [ms for ms, code in found["answers"] if code != 0]
    if not accepted:
        bench.unsound(f"{what}, {way}: nothing was answered")
    row = {
        "load": what,
        "way": way,
        "answers_per_s": found["per_s"],
        # Of those that were asked within the time, whenever their answers came.
        "in_time_per_s": sum(ms <= budget_ms for ms in accepted) / found["seconds"],
        "p50_ms": _percentile(accepted, 50),
        "p99_ms": _percentile(accepted, 99),
        "refused": len(refused) / len(found["answers"]) if found["answers"] else 0.0,
        "refused_p50_ms": _percentile(refused, 50),
        "refused_p99_ms": _percentile(refused, 99),
        "clients_cpu": found["cpu_share"],
    }
    if before is not None and after is not None:
        # In: the announcement, the request and the answer of the replica.  Out: the request and the answer.
        messages = 5 * len(found["answers"])
        row |= {
            "gateway_messages_per_s": messages / found["seconds"],
            "gateway_us_per_message": (after["cpu_s"] - before["cpu_s"]) * 1e6 / max(messages, 1),
            "gateway_mb": after["rss_mb"],
        }
    bench.row(**row)
    return row


def _percentile(samples: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(samples, percent)) if samples else None


async def _cloud(
    bench: Bench, stack: AsyncExitStack, config: dict[str, Any], role: str, scratch: Path
) -> tuple[Child, str, Child]:
    text = json.dumps(config)
    argv = [sys.executable, "-m", "bench.load_cloud"]
    gateway = await Child.start("gateway", [*argv, "gateway", text], scratch / "gateway.log")
    stack.push_async_callback(gateway.stop)
    os.sched_setaffinity(gateway.pid, {bench.config["other_core"]})
    facts = await gateway.ready()
    log = scratch / "replica.log"
    replica = await Child.start("replica", [*argv, role, text, facts["replica"]], log)
    stack.push_async_callback(replica.stop)
    os.sched_setaffinity(replica.pid, {bench.config["replica_core"]})
    await replica.ready(120.0)
    return gateway, str(facts["device"]), replica


async def _serve(bench: Bench, stack: AsyncExitStack, scratch: Path, path: Path) -> Child:
    """The baselines, ready, and a process that asks them."""
    cluster = await RayCluster.start(scratch)
    stack.push_async_callback(cluster.stop)
    # First: importing Ray reads its settings, the cluster's secret among them.
    os.environ.update(cluster.environment)
    import ray
    from ray import serve

    from bench.load_serve import HANDLE, HTTP, application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    # Before the cluster is ended: a driver that loses its cluster ends its own process.
    stack.callback(ray.shutdown)
    [port] = free_ports(1)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    config = bench.config
    bound = application(config["network"], config["cut"], scratch / "cache", config["replica_core"])
    for name in (HANDLE, HTTP):
        await asyncio.to_thread(serve.run, bound, name=name, route_prefix=f"/{name}")
    argv = [sys.executable, "-m", "bench.load_serve", cluster.address, str(port), json.dumps(str(path))]
    clients = await Child.start("clients of Serve", argv, scratch / "clients.log")
    stack.push_async_callback(clients.stop)
    await clients.ready()
    return clients


async def _devices(
    bench: Bench,
    stack: AsyncExitStack,
    endpoint: str,
    whom: tuple[str, str, int, int],
    path: Path,
    scratch: Path,
) -> Child:
    argv = [sys.executable, "-m", "bench.load_devices", endpoint, *map(str, whom), json.dumps(str(path))]
    devices = await Child.start("devices", argv, scratch / "devices.log")
    stack.push_async_callback(devices.stop)
    os.sched_setaffinity(devices.pid, {bench.config["other_core"]})
    await devices.ready()
    return devices


def _activation(name: str, scratch: Path) -> tuple[str, int, Path]:
    """The digest, the cut in the first half that sends least, and a file with what crosses there."""
    from shared.codec import Codec, encode
    from shared.config import ModelSource
    from shared.graph import load
    from shared.models import resolve
    from shared.wire.messages import Infer

    model = resolve(ModelSource(name=name), scratch / "cache")
    program = load(model.captured, mode="fused")
    graph = program.graph
    single = [cut for cut in graph.cuts[: len(graph.cuts) // 2] if len(cut.live) == 1]
    cut = min(single, key=lambda each: graph.live_specs(each, 1)[0].nbytes)
    args, kwargs = model.example
    state = program.start(graph.flatten(args, kwargs))
    program.run(state, cut.edge_units)
    [slot] = cut.live
    header, payload = encode(program.live(state, cut)[0], Codec.FLOAT32, slot)
    path = scratch / "activation"
    infer = Infer(batch=1, tensors=[header], reply_codec=Codec.FLOAT32)
    path.write_bytes(msgspec.json.encode(infer) + b"\n" + bytes(payload))
    return graph.digest, cut.index, path


if __name__ == "__main__":
    raise SystemExit(main())
