"""A Ray cluster of one's own on this machine: beside any other, and gone without a trace afterwards.

``ray stop`` ends every Ray process of the user, so it is never used here.  Every process that a cluster
starts carries a mark in its environment, by which those that outlived their parents are found and ended.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bench.child import Child, ChildError, free_ports

__all__ = ["RayCluster"]

_MARK = "SUTURE_BENCH_CLUSTER"
_STARTED = "Ray runtime started"
_MOST_SCANS, _CLEAN_SCANS, _SCAN_PAUSE_S = 100, 4, 0.1


class RayCluster:
    """``environment`` is what a process needs to join: pass it to children that use this cluster."""

    def __init__(self, head: Child, environment: Mapping[str, str]) -> None:
        self.head = head
        self.environment = environment
        self.address = environment["RAY_ADDRESS"]

    @classmethod
    async def start(cls, scratch: Path, *, num_cpus: int = 2, timeout_s: float = 90.0) -> RayCluster:
        """Start a head node that keeps its files under ``scratch``, a short path: Ray's sockets are in it.

        Raises ChildError with Ray's own words when it does not start.
        """
        port, client_port, dashboard_port, agent_port = free_ports(4)
        environment = {
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            # Ray listens on every interface and runs what it is sent, so it gets a secret of its own.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # Ray's workers are nice by default, but here nothing on the machine is more important.
            "RAY_worker_niceness": "0",
            _MARK: secrets.token_hex(8),
        }
        argv = [_beside_python("ray"), "start", "--head", "--block", f"--port={port}"]
        argv += [f"--num-cpus={num_cpus}", f"--temp-dir={scratch}"]
        argv += ["--include-dashboard=false", f"--ray-client-server-port={client_port}"]
        argv += [f"--dashboard-port={dashboard_port}", f"--dashboard-agent-listen-port={agent_port}"]
        # The head must not take the address to join for one of another cluster.
        own = {**environment, "RAY_ADDRESS": ""}
        log = scratch / "ray-head.log"
        head = await Child.start("ray start", argv, log, env=own, controlled=False)
        cluster = cls(head, environment)
        try:
            await cluster._wait_started(log, timeout_s)
        except BaseException:
            await cluster.stop()
            raise
        return cluster

    async def _wait_started(self, log: Path, timeout_s: float) -> None:
        give_up_s = time.monotonic() + timeout_s
        while _STARTED not in await asyncio.to_thread(log.read_text, errors="replace"):
            if self.head.returncode is not None:
                raise ChildError(f"ray start ended with code {self.head.returncode}{self.head.tail()}")
            if time.monotonic() > give_up_s:
                raise ChildError(f"ray start took more than {timeout_s:g} s{self.head.tail()}")
            with suppress(TimeoutError):
                await self.head.wait(0.2)

    def titles(self) -> list[tuple[int, str]]:
        """The processes of this cluster, by what they call themselves; Ray's workers say what they run."""
        mark = f"{_MARK}={self.environment[_MARK]}".encode()
        return [(pid, _title(pid)) for pid in _own_processes() if mark in _environment(pid)]

    async def stop(self) -> None:
        """End the head and whatever carries the cluster's mark."""
        # Nothing of it is kept, so that there is nothing worth waiting for.
        await self.head.stop(grace_s=1.0)
        await asyncio.to_thread(_end_marked, f"{_MARK}={self.environment[_MARK]}".encode())


def _beside_python(command: str) -> str:
    """The command of this environment, also where its directory is not on the PATH."""
    return str(Path(sys.executable).with_name(command))


def _end_marked(mark: bytes) -> None:
    # Until none was seen several times over: one that is ended here may have been starting another, and
    # one that is just starting has no environment to be read for a moment.
    clean = 0
    for _ in range(_MOST_SCANS):
        marked = [pid for pid in _own_processes() if mark in _environment(pid)]
        for pid in marked:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        clean = 0 if marked else clean + 1
        if clean == _CLEAN_SCANS:
            return
        time.sleep(_SCAN_PAUSE_S)


def _own_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:  # gone by now
        return ""


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone by now, or another user's
        return []
