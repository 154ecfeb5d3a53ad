from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from bench.child import Child, ChildError
from bench.cloud_process import start_cloud
from edge_agent.client import Client


@pytest.mark.slow
async def test_a_slow_agent_can_be_pinned_from_outside_and_is_served_to_clients(tmp_path: Path) -> None:
    models = [{"name": "mnist"}]
    free = {"device_port": 0, "replica_port": 0, "load_port": 0}
    cloud, gateway, feed = await start_cloud(
        {"gateway": free, "models": models, "cache_dir": str(tmp_path)}, tmp_path / "cloud.log"
    )
    config = {
        "models": models,
        "socket": f"ipc://{tmp_path}/agent.sock",
        "cache_dir": str(tmp_path),
        "threads": 1,
        "cloud": {"gateway": gateway, "load_feed": feed},
    }
    (tmp_path / "agent.yaml").write_text(yaml.safe_dump(config))
    argv = [
        sys.executable,
        "-m",
        "bench.slow_agent",
        "--config",
        str(tmp_path / "agent.yaml"),
        "--stretch=20",
    ]
    agent = await Child.start("agent", argv, tmp_path / "agent.log")
    try:
        facts = await agent.ready()
        assert facts == {"socket": config["socket"], "stretch": 20.0}
        known = (await agent.call("facts"))["mnist"]
        assert known["device_ms"] > 5 * known["cloud_ms"] > 0
        assert (await agent.call("link"))["state"] == "online"
        assert await agent.call("uplink_mbps", model="mnist") > 0
        image = np.zeros((1, 1, 28, 28), np.uint8)
        last = len(known["cuts"]) - 1
        async with Client(config["socket"]) as client:
            for cut, where in ((0, "cloud"), (2, "split"), (last, "device")):
                if cut != last:
                    codec = await agent.call("best_codec", model="mnist", cut=cut)
                    await agent.call("pin", model="mnist", cut=cut, codec=codec)
                else:
                    await agent.call("pin", model="mnist", cut=cut)
                result = await client.infer("mnist", image, deadline_ms=10_000)
                assert (result.where, result.cut_index) == (where, cut)
        with pytest.raises(ChildError, match=f"PlanError: mnist has cuts 0 to {last}, not 99"):
            await agent.call("pin", model="mnist", cut=99)
        with pytest.raises(ChildError, match="LookupError: mnist has no candidate at cut 99"):
            await agent.call("best_codec", model="mnist", cut=99)
        await agent.call("unpin", model="mnist")
    finally:
        await agent.stop()
        await cloud.stop()
    assert agent.returncode == 0
