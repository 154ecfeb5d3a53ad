"""The tutorial, done: its files as they stand there, its commands, and its application against its cloud."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_cluster.in_process import InProcessCloud
from edge_agent.agent import EdgeAgent
from shared.config import AgentConfig, CloudConfig, load_config

DOC = (Path(__file__).parents[1] / "docs/tutorial.md").read_text()

pytestmark = pytest.mark.slow


def files() -> dict[str, str]:
    """What the page says to write, by the name in its first line."""
    found = re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", DOC, re.M | re.S)
    return {name: f"# {name}\n{text}" for name, text in found}


def command(start: str) -> list[str]:
    """The one command of the page that starts so."""
    (line,) = [line for line in re.findall(r"^\$ (.*)$", DOC, re.M) if line.startswith(start)]
    return line.removeprefix("PYTHONPATH=. ").split()


def run(arguments: list[str], folder: Path) -> str:
    assert arguments[0] == "edge-agent"
    ran = subprocess.run(
        [sys.executable, "-m", "edge_agent.cli", *arguments[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ".", "SUTURE_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


async def test_the_tutorial_works_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files().keys() == {"my_network.py", "cloud.yaml", "device.yaml", "application.py"}
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    bundled = await asyncio.to_thread(run, command("PYTHONPATH=. edge-agent bundle"), tmp_path)
    assert "units" in bundled
    planned = await asyncio.to_thread(run, command("edge-agent plan"), tmp_path)
    assert "sorter" in planned

    monkeypatch.chdir(tmp_path)  # where the bundle's path starts
    ports = {
        "SUTURE_GATEWAY__DEVICE_PORT": "0",
        "SUTURE_GATEWAY__REPLICA_PORT": "0",
        "SUTURE_GATEWAY__LOAD_PORT": "0",
        "SUTURE_CACHE_DIR": str(tmp_path / "cache"),
    }
    async with InProcessCloud(load_config(CloudConfig, "cloud.yaml", ports)) as cloud:
        socket = f"ipc://{tmp_path}/agent.sock"
        overrides = {
            "SUTURE_CLOUD__GATEWAY": cloud.device_endpoint,
            "SUTURE_SOCKET": socket,
            "SUTURE_CACHE_DIR": str(tmp_path / "cache"),
        }
        async with EdgeAgent.from_config(load_config(AgentConfig, "device.yaml", overrides), serve=True):
            written = (tmp_path / "application.py").read_text()
            (tmp_path / "application.py").write_text(
                re.sub(r'SOCKET = ".*?"', f'SOCKET = "{socket}"', written)
            )
            process = await asyncio.create_subprocess_exec(
                sys.executable, "application.py", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
            )
            printed, _ = await asyncio.wait_for(process.communicate(), 110)
    lines = printed.decode().splitlines()
    assert len(lines) == 5
    assert len({line.split(",")[0] for line in lines}) == 1  # the same image, the same class
    assert all(
        re.match(r"class \d, (device|split|cloud|device-fallback), [\d.]+ ms: \w", line) for line in lines
    )
