"""The cloud of the chaos bench, which can be killed piece by piece: under Ray Serve, or as plain processes.

Both have one gateway at fixed ports and two replicas, and both start again what was killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import zmq

from bench.child import Child, ChildError, free_ports
from bench.ray_cluster import RayCluster
from shared.config import CloudConfig, parse_config
from shared.keys import KeyPair, write_pair

__all__ = ["REPLICAS", "Cloud", "ProcessCloud", "RayCloud", "configuration", "make_keys"]

REPLICAS = 2
_PATIENCE_S = 120.0


class Cloud(Protocol):
    """``ports`` are those for devices and for the load feed."""

    ports: tuple[int, int]

    async def start(self) -> None:
        """Everything; :class:`bench.child.ChildError` when it does not come up."""

    async def stop(self) -> None:
        """Everything, as an operator would stop it."""

    async def close(self) -> None:
        """The end: nothing of it is left."""

    def pids(self) -> Mapping[str, int]:
        """The processes there are now: ``gateway`` and ``replica-...``."""

    async def kill_replica(self) -> None: ...


def make_keys(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """New keys of a gateway, its replicas and one device: the ``keys`` of the cloud's and of the device's
    configuration."""
    pairs, paths = {}, {}
    for name in ("gateway", "replica", "device"):
        public, secret = (half.decode() for half in zmq.curve_keypair())
        pairs[name] = KeyPair(public, secret)
        paths[name] = write_pair(root / name, name, pairs[name])
    (root / "listed").mkdir()
    (root / "listed" / "device.key").write_bytes(paths["device"][1].read_bytes())
    cloud = {
        "secret": str(paths["gateway"][0]),
        "devices": str(root / "listed"),
        "replicas": str(paths["replica"][0]),
    }
    return cloud, {"secret": str(paths["device"][0]), "server": pairs["gateway"].public}


def configuration(model: Mapping[str, Any], keys: Mapping[str, str], cache_dir: Path) -> CloudConfig:
    """Replicas of one network, and free ports."""
    device_port, replica_port, load_port = free_ports(3)
    fields = {
        "gateway": {
            "device_port": device_port,
            "replica_port": replica_port,
            "load_port": load_port,
            "keys": dict(keys),
            "num_cpus": 0.2,
        },
        "models": [{**model, "replicas": REPLICAS, "num_cpus": 0.5, "threads": 1, "max_batch": 4}],
        "cache_dir": str(cache_dir),
        "profile_repeats": 5,
    }
    return parse_config(CloudConfig, fields, "the bench")


class ProcessCloud:
    """The product's gateway and replicas, each a child process."""

    def __init__(self, config: CloudConfig, scratch: Path) -> None:
        self.ports = config.gateway.device_port, config.gateway.load_port
        self._config = config
        self._scratch = scratch
        self._children: dict[str, Child] = {}
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for name in ("gateway", *(f"replica-{number}" for number in range(REPLICAS))):
            self._children[name] = await self._begin(name)
        for child in self._children.values():
            await child.ready(_PATIENCE_S)
        self._keeping = asyncio.create_task(self._keep_alive(), name="keep the cloud alive")

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        await asyncio.gather(*(child.stop(5.0) for child in self._children.values()))
        self._children.clear()

    async def close(self) -> None:
        await self.stop()

    def pids(self) -> Mapping[str, int]:
        return {name: child.pid for name, child in self._children.items() if child.returncode is None}

    async def kill_replica(self) -> None:
        os.kill(self.pids()["replica-0"], signal.SIGKILL)

    async def _begin(self, name: str) -> Child:
        gateway = self._config.gateway
        argv = [sys.executable, "-m", "bench.load_cloud", name.partition("-")[0]]
        argv += [self._config.model_dump_json()]
        if name != "gateway":
            argv += [f"tcp://{gateway.host}:{gateway.replica_port}"]
        return await Child.start(name, argv, self._scratch / f"{name}.log")

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            for name, child in list(self._children.items()):
                if child.returncode is not None:
                    await child.stop()
                    self._children[name] = await self._begin(name)


class RayCloud:
    """The product's application under Ray Serve, in a cluster of its own."""

    def __init__(self, config: CloudConfig, scratch: Path) -> None:
        self.ports = config.gateway.device_port, config.gateway.load_port
        self._config = config
        self._scratch = scratch
        self._cluster: RayCluster | None = None

    async def start(self) -> None:
        if self._cluster is None:
            self._cluster = await RayCluster.start(self._scratch, num_cpus=4)
            # First: importing Ray reads its settings, the cluster's secret among them.
            os.environ.update(self._cluster.environment)
            import ray
            from ray import serve

            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            ray.init(self._cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            serve.start(proxy_location="Disabled")
        from ray import serve

        from cloud_cluster.application import build

        async with asyncio.timeout(_PATIENCE_S):
            await asyncio.to_thread(serve.run, build(self._config))

    async def stop(self) -> None:
        from ray import serve

        await asyncio.to_thread(serve.delete, "default")

    async def close(self) -> None:
        if self._cluster is not None:
            import ray

            # Before the cluster is ended: a driver that loses its cluster ends its own process.
            ray.shutdown()
            await self._cluster.stop()

    def pids(self) -> Mapping[str, int]:
        assert self._cluster is not None
        found: dict[str, int] = {}
        for pid, title in self._cluster.titles():
            if title.startswith("ray::ServeReplica:default:Gateway"):
                found["gateway"] = pid
            elif title.startswith("ray::ServeReplica:default:Tail"):
                found[f"replica-{pid}"] = pid
        return found

    async def kill_replica(self) -> None:
        import ray

        def kill() -> None:
            for actor in ray.util.list_named_actors(all_namespaces=True):
                if "SERVE_REPLICA::default#Tail" in actor["name"]:
                    ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]))
                    return
            raise ChildError("there is no replica to kill")

        await asyncio.to_thread(kill)
