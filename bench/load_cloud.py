"""The cloud of the load bench: the product's gateway in a process of its own, and a replica in another.

Controlled children, as under Ray but without it: ``gateway CONFIG``, ``replica CONFIG ENDPOINT``, and
``no-op CONFIG ENDPOINT``, which is a replica that computes nothing.  CONFIG is a
:class:`shared.config.CloudConfig` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

from bench.child import answer
from cloud_cluster.gateway import Gateway
from cloud_cluster.tail import Tail
from shared.config import CloudConfig, ServedModelConfig, parse_config


def usage() -> dict[str, float]:
    """CPU seconds of this process since its start, and its resident memory now."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "cpu_s": spent.ru_utime + spent.ru_stime,
        "rss_mb": pages * resource.getpagesize() / 2**20,
    }


async def _gateway(config: CloudConfig) -> None:
    gateway = Gateway(config.gateway, config.models)
    await gateway.start()
    running = asyncio.create_task(gateway.run(), name="gateway")
    try:
        facts = {"device": gateway.device_endpoint, "replica": gateway.replica_endpoint}
        await answer({"usage": usage}, facts)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await gateway.stop()


async def _replica(config: CloudConfig, endpoint: str, no_op: bool) -> None:
    model = config.models[0]
    executor = None
    if no_op:
        from bench.hop_app import NoOp

        executor = NoOp()
    tail = Tail(
        model,
        [endpoint],
        executor=executor,
        cache_dir=config.cache_dir,
        profile_repeats=config.profile_repeats,
        keys=config.gateway.keys,
    )
    await tail.start()
    running = asyncio.create_task(tail.run(), name="replica")
    try:
        await tail.wait_ready()

        async def torch_speed(cut: int, seconds: float) -> float:
            return await asyncio.to_thread(_torch_per_s, model, config.cache_dir, cut, seconds)

        await answer({"usage": usage, "torch_speed": torch_speed}, {"replica": tail.replica})
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await tail.stop(drain_s=1.0)


_programs: dict[str, Any] = {}


def _torch_per_s(model: ServedModelConfig, cache_dir: Path, cut_index: int, seconds: float) -> float:
    """Runs per second of the units above the cut and nothing else, in this process while it is idle."""
    import torch

    from shared.graph import load
    from shared.models import resolve

    torch.set_num_threads(1)
    if model.name not in _programs:
        resolved = resolve(model, cache_dir)
        _programs[model.name] = (resolved, load(resolved.captured, mode="fused"))
    resolved, program = _programs[model.name]
    graph = program.graph
    cut = graph.cuts[cut_index]
    args, kwargs = resolved.example
    state = program.start(graph.flatten(args, kwargs))
    program.run(state, cut.edge_units)
    tensors = program.live(state, cut)
    runs, began_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - began_s) < seconds:
        resumed = program.resume(cut, tensors, 1)
        program.run(resumed, cut.cloud_units)
        program.outputs(resumed)
        runs += 1
    return runs / elapsed_s


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    role, text, *rest = sys.argv[1:]
    cloud_config = parse_config(CloudConfig, json.loads(text), "the bench")
    asyncio.run(
        _gateway(cloud_config) if role == "gateway" else _replica(cloud_config, rest[0], role == "no-op")
    )
