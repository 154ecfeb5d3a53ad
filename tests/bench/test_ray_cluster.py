from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench.child import ChildError
from bench.ray_cluster import _MARK, RayCluster, _environment, _own_processes


def marked(cluster: RayCluster) -> list[int]:
    mark = f"{_MARK}={cluster.environment[_MARK]}".encode()
    return [pid for pid in _own_processes() if mark in _environment(pid)]


def run(job: str, cluster: RayCluster) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", job]
    return subprocess.run(command, env=dict(cluster.environment), capture_output=True, text=True)


@pytest.mark.ray
@pytest.mark.slow
async def test_a_cluster_takes_jobs_and_leaves_nothing_behind() -> None:
    with tempfile.TemporaryDirectory(prefix="suture-") as scratch:
        cluster = await RayCluster.start(Path(scratch), num_cpus=1)
        job = "import ray; ray.init(log_to_driver=False); print(ray.get(ray.remote(lambda: 6 * 7).remote()))"
        done = await asyncio.to_thread(run, job, cluster)
        assert done.stdout.strip() == "42", done.stderr
        assert len(marked(cluster)) > 3
        await cluster.stop()
        assert marked(cluster) == []


@pytest.mark.ray
async def test_a_cluster_that_does_not_start_says_why() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="suture-") as scratch,
        pytest.raises(ChildError, match="ray start ended with code"),
    ):
        await RayCluster.start(Path(scratch), num_cpus=-1)
