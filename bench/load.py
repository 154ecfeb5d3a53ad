"""What a gateway and a replica carry: throughput against torch's own speed, tails, refusals, memory.

Many simulated devices in one process send an activation of a real cut over real ZeroMQ to the product's
gateway, in a process of its own, and to one replica in another.  There is no Ray in this: it places and
starts processes, and no request passes through it.  What torch alone does above the same cut, in the
replica's own process while nothing is asked, is measured before and after.  Where there are two cores the
replica has one and everything else the other.
"""

from __future__ import annotations

import json
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

from bench.child import Child, run
from bench.contract import Bench
from bench.hop_reply import DIGEST, MODEL

__all__ = ["main"]

_NETWORK, _QUICK_NETWORK = "resnet50", "mobilenetv2"
_LOADS = (0.5, 0.8, 0.95, 3.0)
_LEAST_SHARE = 0.9
_BUDGET_FACTOR = 12.0


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("load", argv, description=(__doc__ or "").partition("\n")[0])
    cores = sorted(os.sched_getaffinity(0))
    bench.config = {
        "network": _QUICK_NETWORK if bench.quick else _NETWORK,
        "devices": [1, 16] if bench.quick else [1, 4, 16, 64, 256],
        "seconds": 1.0 if bench.quick else 6.0,
        "replica_core": cores[0],
        "other_core": cores[-1],
    }
    run(_run(bench))
    return bench.finish()


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
        seconds = bench.config["seconds"]
        before = float(await replica.call("torch_speed", cut=cut, seconds=seconds))
        fastest = 0.0
        for count in bench.config["devices"]:
            devices = await _devices(bench, stack, endpoint, (name, digest, cut, count), path, scratch)
            spent = await gateway.call("usage")
            found = await devices.call("closed", seconds=seconds, in_flight=2, budget_ms=30_000.0)
            after = await gateway.call("usage")
            _row(bench, f"closed loop, {count} devices", found, spent, after)
            fastest = max(fastest, found["per_s"])
            await devices.stop()
        torch_after = float(await replica.call("torch_speed", cut=cut, seconds=seconds))
        torch_per_s = statistics.fmean((before, torch_after))
        bench.config |= {
            "torch_per_s": [before, torch_after],
            "cut": cut,
            "payload_bytes": path.stat().st_size,
        }
        share = fastest / torch_per_s
        bench.target("throughput at saturation over torch alone", share, "x", _LEAST_SHARE, "at_least")
        budget_ms = 1e3 / torch_per_s * _BUDGET_FACTOR
        devices = await _devices(bench, stack, endpoint, (name, digest, cut, 16), path, scratch)
        for load in _LOADS:
            spent = await gateway.call("usage")
            found = await devices.call(
                "open", seconds=2 * seconds, rate_hz=load * fastest, budget_ms=budget_ms, seed=bench.seed
            )
            after = await gateway.call("usage")
            row = _row(bench, f"open loop, {load:.0%} of capacity", found, spent, after)
            bench.target(
                f"{load:.0%} of capacity: p99 of accepted", row["p99_ms"], "ms", budget_ms, "at_most"
            )
            if load > 1:
                grown_mb = after["rss_mb"] - spent["rss_mb"]
                bench.target("overload: gateway's memory grows by", grown_mb, "MB", 20.0, "at_most")
                quickest = bench.rows[0]["p50_ms"] or 0.0
                bench.target("overload: median refusal", row["refused_p50_ms"], "ms", quickest, "at_most")
        bench.config["budget_ms"] = budget_ms
        await _no_op(bench, stack, path, scratch)


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
    bench: Bench, what: str, found: dict[str, Any], before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    accepted = [ms for ms, code in found["answers"] if code == 0]
    refused = [ms for ms, code in found["answers"] if code != 0]
    if not accepted:
        bench.unsound(f"{what}: nothing was answered")
    # In: the announcement, the request and the answer of the replica.  Out: the request and the answer.
    messages = 5 * len(found["answers"])
    row = {
        "load": what,
        "answers_per_s": found["per_s"],
        "p50_ms": _percentile(accepted, 50),
        "p99_ms": _percentile(accepted, 99),
        "refused": len(refused) / len(found["answers"]) if found["answers"] else 0.0,
        "refused_p50_ms": _percentile(refused, 50),
        "refused_p99_ms": _percentile(refused, 99),
        "gateway_messages_per_s": messages / found["seconds"],
        "gateway_us_per_message": (after["cpu_s"] - before["cpu_s"]) * 1e6 / max(messages, 1),
        "devices_cpu": found["cpu_share"],
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
