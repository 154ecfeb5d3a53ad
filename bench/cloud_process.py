"""A cloud without Ray in a process of its own: the same gateway and replicas, for benches of other things.

``python -m bench.cloud_process CONFIG`` is a controlled child; CONFIG is a :class:`shared.config.CloudConfig`
as JSON, whose ports may be 0.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

from bench.child import Child, answer
from cloud_cluster.in_process import InProcessCloud
from shared.config import CloudConfig, parse_config

__all__ = ["start_cloud"]


async def start_cloud(config: dict[str, Any], log: Path, timeout_s: float = 300.0) -> tuple[Child, str, str]:
    """The process, and where devices and load subscribers connect, once every replica is ready.

    Raises ChildError with what went wrong.
    """
    child = await Child.start("the cloud", [sys.executable, "-m", __name__, json.dumps(config)], log)
    try:
        facts = await child.ready(timeout_s)
    except BaseException:
        await child.stop()
        raise
    return child, str(facts["device_endpoint"]), str(facts["load_endpoint"])


async def _serve(config: CloudConfig) -> None:
    async with InProcessCloud(config) as cloud:
        facts = {"device_endpoint": cloud.device_endpoint, "load_endpoint": cloud.load_endpoint}
        await answer({}, facts)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(_serve(parse_config(CloudConfig, json.loads(sys.argv[1]), "the bench")))
