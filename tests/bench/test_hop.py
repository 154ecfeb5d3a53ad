from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.child import Child, ChildError
from bench.hop_app import NoOp
from bench.hop_reply import REPLY_BYTES, check_reply, reply_to
from cloud_cluster.in_process import InProcessCloud
from shared.config import CloudConfig


def test_a_reply_names_the_size_of_its_request() -> None:
    reply = reply_to(150_000)
    assert len(reply) == REPLY_BYTES
    check_reply(150_000, reply)
    with pytest.raises(ValueError, match="sent 1000 bytes, but the other side saw 150000"):
        check_reply(1_000, reply)
    with pytest.raises(ValueError, match="a reply of 3999 bytes"):
        check_reply(150_000, reply[1:])


@pytest.mark.slow
async def test_the_device_reaches_the_gateway_and_the_echo_from_its_own_process(tmp_path: Path) -> None:
    gateway = {"device_port": 0, "replica_port": 0, "load_port": 0}
    config = CloudConfig.model_validate(
        {"gateway": gateway, "models": [{"name": "no-op"}], "cache_dir": str(tmp_path)}
    )
    command = [sys.executable, "-m", "bench.hop_device"]
    async with InProcessCloud(config, executor_for=lambda _: NoOp()) as cloud:
        echo = await Child.start("echo", [*command, "echo"], tmp_path / "echo.log")
        device = await Child.start("device", [*command, cloud.device_endpoint], tmp_path / "device.log")
        try:
            endpoint = (await echo.ready())["endpoint"]
            await device.ready()
            for size in (1, 1_000_000):
                measured = await device.call("link", size=size)
                assert measured["ms"] > measured["gateway_ms"] > 0
                assert await device.call("plain", endpoint=endpoint, size=size) > 0
            with pytest.raises(ChildError, match="no command 'echo'"):
                await device.call("echo")
        finally:
            await device.stop()
            await echo.stop()
    assert device.returncode == 0
    assert echo.returncode == 0
