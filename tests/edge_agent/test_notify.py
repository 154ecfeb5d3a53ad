"""The service manager is a Unix datagram socket; here a real one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.notify import ServiceManager

ROOT = Path(__file__).parents[2]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(os.fspath(tmp_path / "notify"))
        heard.settimeout(10)
        yield heard, {"NOTIFY_SOCKET": os.fspath(tmp_path / "notify")}


def test_the_manager_hears_ready_status_and_stopping(manager: tuple[socket.socket, dict[str, str]]) -> None:
    heard, environment = manager
    service = ServiceManager(environment)
    service.ready("2 networks")
    service.status("cloud: connected")
    service.stopping()
    assert [heard.recv(999) for _ in range(3)] == [
        b"READY=1\nSTATUS=2 networks",
        b"STATUS=cloud: connected",
        b"STOPPING=1",
    ]


def test_an_abstract_address_is_one() -> None:
    name = f"suture-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0{name}")
        heard.settimeout(10)
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).stopping()
        assert heard.recv(99) == b"STOPPING=1"


async def test_the_watchdog_is_fed_more_often_than_it_asks(
    manager: tuple[socket.socket, dict[str, str]],
) -> None:
    heard, environment = manager
    service = ServiceManager({**environment, "WATCHDOG_USEC": "20000"})
    assert service.watchdog_s == 0.02
    feeding = asyncio.create_task(service.keep_alive())
    heard.setblocking(False)
    loop = asyncio.get_running_loop()
    words = [await asyncio.wait_for(loop.sock_recv(heard, 99), 10) for _ in range(3)]
    feeding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await feeding
    assert words == [b"WATCHDOG=1"] * 3


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "@nobody"},
        {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "1000"},
    ],
)
async def test_where_nobody_watches_nothing_is_fed(environment: dict[str, str]) -> None:
    service = ServiceManager(environment)
    assert service.watchdog_s is None
    await asyncio.wait_for(service.keep_alive(), 10)


def test_a_manager_that_is_gone_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({"NOTIFY_SOCKET": os.fspath(tmp_path / "gone")}).ready("2 networks")
    assert "does not listen" in caplog.text
    caplog.clear()
    ServiceManager({}).ready("2 networks")
    assert not caplog.text


@pytest.mark.slow
def test_the_agent_tells_its_manager_that_it_serves_lives_and_stops(
    manager: tuple[socket.socket, dict[str, str]], tmp_path: Path
) -> None:
    heard, environment = manager
    heard.settimeout(90)
    config = tmp_path / "agent.yaml"
    config.write_text(
        f"socket: ipc://{tmp_path}/agent.sock\ncache_dir: {tmp_path}/cache\nthreads: 1\nprofile_repeats: 3\n"
        "cloud: {gateway: 'tcp://127.0.0.1:9'}\n"
        "models: [{name: photos, factory: 'tests.edge_agent.edge_networks:photos'}]\n"
    )
    agent = subprocess.Popen(
        [sys.executable, "-m", "edge_agent.cli", "--config", str(config)],
        cwd=ROOT,
        env={**os.environ, **environment, "WATCHDOG_USEC": "300000"},
        stderr=subprocess.PIPE,
    )
    try:
        assert heard.recv(999) == b"READY=1\nSTATUS=photos; cloud offline"
        assert [heard.recv(99) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        agent.send_signal(signal.SIGTERM)
        words = iter(lambda: heard.recv(99), b"STOPPING=1")
        assert set(words) <= {b"WATCHDOG=1"}
        agent.communicate(timeout=60)
        assert agent.returncode == 0
    finally:
        agent.kill()
        agent.communicate()
