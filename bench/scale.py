"""A load step under real Ray Serve: when replicas come and go, where the devices compute meanwhile.

Several devices, real agents, ask at random moments for well less than one replica can do, then for four
times as much, which is more than one can do, then for as much as before.  Ray Serve starts and stops the
replicas by the product's own policy.  Replicas and devices are slower than this machine by stated factors,
the devices by different ones, so that several replicas and ten devices fit on it: the real network, followed
by a sleep (``bench/scale_app.py``, ``bench/stretch.py``).  All devices together could answer everything
themselves.

The devices and the reader of the load feed share a process and a clock; gateway, replicas and Ray have
processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.child import Child, free_ports, run
from bench.contract import Bench
from bench.ray_cluster import RayCluster
from bench.scale_figures import judge

__all__ = ["main"]

_NETWORK = "mobilenetv2"
_DEVICE_STRETCH = (80.0,) * 3 + (110.0,) * 4 + (150.0,) * 3
"""Few factors, because every one of them takes a profile of its own."""

_DEADLINE_MS = 4000.0
_TARGET_QUEUE_MS = 200.0
_BASE, _STEP = 0.25, 4.0
"""Requests of the first phase as a share of what one replica can do, and how many times more then come."""


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("scale", argv, description=(__doc__ or "").partition("\n")[0])
    phases_s = (6.0, 24.0, 6.0) if bench.quick else (20.0, 45.0, 30.0)
    bench.config = {
        "network": _NETWORK,
        "device_stretch": _DEVICE_STRETCH,
        "phases_s": phases_s,
        "base": _BASE,
        "step": _STEP,
        "deadline_ms": _DEADLINE_MS,
        "autoscale": {
            "min_replicas": 1,
            "max_replicas": 6,
            "target_queue_ms": _TARGET_QUEUE_MS,
            "upscale_delay_s": 1.0,
            "downscale_delay_s": 4.0 if bench.quick else 8.0,
        },
    }
    run(_run(bench))
    return bench.finish()


async def _run(bench: Bench) -> None:
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-")))
        with bench.console.status("starting Ray, Serve and one replica ..."):
            cluster = await RayCluster.start(scratch, num_cpus=8)
            stack.push_async_callback(cluster.stop)
            gateway, feed = await _deploy(stack, cluster, bench.config, scratch)
        config = bench.config
        argv = [sys.executable, "-m", "bench.scale_devices", gateway, feed, config["network"]]
        argv += [json.dumps(config["device_stretch"]), str(scratch / "device")]
        with bench.console.status("starting the devices: the first measures the network ..."):
            devices = await Child.start("devices", argv, scratch / "devices.log")
            stack.push_async_callback(devices.stop)
            await devices.ready(400.0)
            facts = await devices.call("facts")
        if not all(facts["online"]):
            bench.unsound("a device has no link")
            return
        capacity_per_s = 1e3 / facts["cloud_ms"]
        config |= {
            "replica_ms": facts["cloud_ms"],
            "device_ms": facts["device_ms"],
            "capacity_per_s": capacity_per_s,
            "cuts": facts["cuts"],
        }
        before_s, step_s, after_s = config["phases_s"]
        base_per_s = _BASE * capacity_per_s
        phases = [[before_s, base_per_s], [step_s, _STEP * base_per_s], [after_s, base_per_s]]
        asking = asyncio.ensure_future(
            devices.call("run", phases=phases, deadline_ms=_DEADLINE_MS, seed=bench.seed, timeout_s=400.0)
        )
        for _ in bench.track(range(round(sum(phases_s for phases_s, _ in phases))), "seconds of load"):
            await asyncio.wait([asking], timeout=1.0)
        found = await asking
    bench.config["errors"] = [each["error"] for each in found["requests"] if "error" in each]
    judge(bench, found["requests"], found["reports"])


async def _deploy(
    stack: AsyncExitStack, cluster: RayCluster, config: dict[str, Any], scratch: Path
) -> tuple[str, str]:
    """Where devices and readers of the load feed connect, once one replica is ready."""
    # First: importing Ray reads its settings, the cluster's secret among them.
    os.environ.update(cluster.environment)
    import ray
    from ray import serve

    from bench.scale_app import STRETCH, StretchedTailHost
    from cloud_cluster.application import build
    from shared.config import CloudConfig

    config["replica_stretch"] = STRETCH
    device_port, load_port = free_ports(2)
    cloud = CloudConfig.model_validate(
        {
            "gateway": {"device_port": device_port, "replica_port": 0, "load_port": load_port},
            "models": [
                {
                    "name": config["network"],
                    "num_cpus": 0.5,
                    "threads": 1,
                    "max_batch": 1,
                    "autoscale": config["autoscale"],
                }
            ],
            "cache_dir": str(scratch / "cloud"),
            "profile_repeats": 5,
        }
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    # Before the cluster is ended: a driver that loses its cluster ends its own process.
    stack.callback(ray.shutdown)
    serve.start(proxy_location="Disabled")
    await asyncio.to_thread(serve.run, build(cloud, StretchedTailHost))
    return f"tcp://127.0.0.1:{device_port}", f"tcp://127.0.0.1:{load_port}"


if __name__ == "__main__":
    raise SystemExit(main())
