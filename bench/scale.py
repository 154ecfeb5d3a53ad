"""A load step under real Ray Serve: when replicas come and go, where the devices compute meanwhile.

Several devices, real agents, ask at random for as much as one replica can do, then for four times as much,
then for as much as before.  Ray Serve starts and stops the replicas by the product's own policy.  Replicas
and devices are slower than this machine by stated factors, so that six of the one and ten of the other
fit on it: the real network, followed by a sleep (``bench/scale_app.py``, ``bench/stretch.py``).

The devices and the reader of the load feed share a process and a clock; gateway, replicas and Ray have
processes of their own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench.child import Child, free_ports, run
from bench.contract import Bench
from bench.ray_cluster import RayCluster

__all__ = ["judge", "main", "series"]

_NETWORK = "mobilenetv2"
_DEVICES = 10
_DEVICE_STRETCH = 26.0
_DEADLINE_MS = 2000.0
_TARGET_QUEUE_MS = 100.0
_STEP = 4.0
_READY_WITHIN_S = 15.0
_SETTLED_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("scale", argv, description=(__doc__ or "").partition("\n")[0])
    before_s, step_s, after_s = (5.0, 16.0, 4.0) if bench.quick else (25.0, 60.0, 40.0)
    bench.config = {
        "network": _NETWORK,
        "devices": _DEVICES,
        "device_stretch": _DEVICE_STRETCH,
        "phases_s": [before_s, step_s, after_s],
        "step": _STEP,
        "deadline_ms": _DEADLINE_MS,
        "autoscale": {
            "min_replicas": 1,
            "max_replicas": 6,
            "target_queue_ms": _TARGET_QUEUE_MS,
            "upscale_delay_s": 1.0,
            "downscale_delay_s": 4.0 if bench.quick else 10.0,
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
        argv += [str(config["devices"]), str(config["device_stretch"]), str(scratch / "device")]
        with bench.console.status("starting the devices: the first measures the network ..."):
            devices = await Child.start("devices", argv, scratch / "devices.log")
            stack.push_async_callback(devices.stop)
            await devices.ready(180.0)
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
        phases = [[before_s, capacity_per_s], [step_s, _STEP * capacity_per_s], [after_s, capacity_per_s]]
        asking = asyncio.ensure_future(
            devices.call("run", phases=phases, deadline_ms=_DEADLINE_MS, seed=bench.seed, timeout_s=400.0)
        )
        for _ in bench.track(range(round(sum(config["phases_s"]))), "seconds of load"):
            await asyncio.wait([asking], timeout=1.0)
        found = await asking
    judge(bench, found["requests"], found["reports"])


def judge(bench: Bench, requests: list[dict[str, Any]], reports: list[dict[str, Any]]) -> None:
    """Rows by phase and by second, and the targets, from what became of requests and what the feed said."""
    before_s, step_s, after_s = bench.config["phases_s"]
    phases = [
        ("1x", 0.0, before_s),
        (f"{_STEP:g}x", before_s, before_s + step_s),
        ("1x again", before_s + step_s, before_s + step_s + after_s),
    ]
    if not reports or not all(_within(requests, start_s, end_s) for _, start_s, end_s in phases):
        bench.unsound("the load feed or the requests of a phase are missing")
        return
    for name, start_s, end_s in phases:
        bench.row(load=name, **_phase(_within(requests, start_s, end_s), _within(reports, start_s, end_s)))
    bench.config["series"] = series(requests, reports, before_s + step_s + after_s)

    stepped = _within(reports, before_s, before_s + step_s)
    had = stepped[0]["ready"] if stepped else 0
    more = [report["at_s"] for report in stepped if report["ready"] > had]
    most = max((report["ready"] for report in stepped), default=0)
    all_ready_s = min((report["at_s"] for report in stepped if report["ready"] == most), default=before_s)
    settled_s = max(before_s + step_s - _SETTLED_S, all_ready_s)
    waits = [report["wait_ms"] for report in _within(reports, settled_s, before_s + step_s)]
    lost = [request for request in requests if "ms" not in request]
    bench.config |= {
        "replicas_before": had,
        "replicas_most": most,
        "errors": [each["error"] for each in lost],
    }
    bench.target("requests lost", len(lost), "requests", 0, "at_most")
    bench.target(
        "first new replica ready after the step",
        more[0] - before_s if more else None,
        "s",
        _READY_WITHIN_S,
        "at_most",
    )
    bench.target(
        f"mean wait in the last {_SETTLED_S:g} s of the step, all replicas ready",
        float(np.mean(waits)) if waits else None,
        "ms",
        _TARGET_QUEUE_MS,
        "at_most",
    )
    bench.target(
        "replicas at the end over those before the step",
        reports[-1]["target"] / max(had, 1),
        "x",
        1.0,
        "at_most",
    )


def series(
    requests: list[dict[str, Any]], reports: list[dict[str, Any]], seconds: float
) -> list[dict[str, Any]]:
    """What the figure is drawn from, for every second: asked, where it was computed, the cut, the wait."""
    rows = []
    for second in range(int(seconds)):
        asked, said = _within(requests, second, second + 1), _within(reports, second, second + 1)
        rows.append({"second": second, **_phase(asked, said)})
    return rows


def _phase(requests: list[dict[str, Any]], reports: list[dict[str, Any]]) -> dict[str, Any]:
    answered = [request for request in requests if "ms" in request]
    latencies = [request["ms"] for request in answered]

    def share(*where: str) -> float | None:
        return sum(request["where"] in where for request in answered) / len(answered) if answered else None

    def mean(key: str, rows: list[dict[str, Any]]) -> float | None:
        return float(np.mean([row[key] for row in rows])) if rows else None

    return {
        "asked": len(requests),
        "lost": len(requests) - len(answered),
        "late": sum(ms > _DEADLINE_MS for ms in latencies),
        "p50_ms": float(np.percentile(latencies, 50)) if latencies else None,
        "p99_ms": float(np.percentile(latencies, 99)) if latencies else None,
        "on_device": share("device", "device-fallback"),
        "fallback": share("device-fallback"),
        "mean_cut": mean("cut", answered),
        "ready": mean("ready", reports),
        "target": mean("target", reports),
        "wait_ms": mean("wait_ms", reports),
    }


def _within(rows: list[dict[str, Any]], start_s: float, end_s: float) -> list[dict[str, Any]]:
    return [row for row in rows if start_s <= row["at_s"] < end_s]


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
