"""An agent whose application asks for more than anybody answers; a controlled child of test_memory.

``python -m tests.attacks.pushy_agent GATEWAY CACHE``.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.child import answer
from edge_agent import EdgeAgent
from shared.config import AgentConfig, parse_config
from shared.errors import SutureError
from tests.attacks.harness import rss_bytes

__all__ = ["DEADLINE_MS", "IMAGE", "MAX_IN_FLIGHT", "wide"]

MAX_IN_FLIGHT = 16
DEADLINE_MS = 150.0
IMAGE = torch.zeros(1, 512, 512, 3, dtype=torch.uint8)
_AT_ONCE = 24


class Wide(nn.Module):
    """Much to send, little to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(image[:, ::8, ::8].float().mean((1, 2)))


def wide() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """The factory ``tests.attacks.pushy_agent:wide``."""
    torch.manual_seed(1)
    return Wide(), (IMAGE,)


async def push(agent: EdgeAgent, count: int) -> dict[str, Any]:
    """Ask ``count`` times, always so many at once; what became of it, and the memory that is then in use."""
    outcomes: Counter[str] = Counter()
    image, left = IMAGE.numpy(), iter(range(count))

    async def ask() -> None:
        for _ in left:
            try:
                result = await agent.infer("wide", image, deadline_ms=DEADLINE_MS)
                outcomes[result.where.value] += 1
            except SutureError as error:
                outcomes[type(error).__name__] += 1
                await asyncio.sleep(0.01)

    await asyncio.gather(*(ask() for _ in range(_AT_ONCE)))
    return {"outcomes": dict(outcomes), "rss_mib": rss_bytes() / 2**20}


async def online(agent: EdgeAgent) -> None:
    """Returns once requests are sent to the cloud."""
    while True:
        if (await agent.infer("wide", IMAGE.numpy(), deadline_ms=DEADLINE_MS)).fallback:
            return
        await asyncio.sleep(0.01)


async def _serve(gateway: str, cache_dir: Path) -> None:
    config = parse_config(
        AgentConfig,
        {
            "models": [{"name": "wide", "factory": "tests.attacks.pushy_agent:wide", "cut": 0}],
            "cloud": {"gateway": gateway, "heartbeat_timeout_ms": 5000},
            "cache_dir": str(cache_dir),
            "threads": 1,
            "profile_repeats": 3,
            "max_in_flight": MAX_IN_FLIGHT,
        },
        "the test",
        {},
    )
    async with EdgeAgent(config) as agent:
        await answer({"push": partial(push, agent), "online": partial(online, agent)}, {})


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2])))
