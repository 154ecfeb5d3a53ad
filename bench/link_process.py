"""The link relay in a process of its own, so that no interpreter lock and no torch disturbs its clock.

``python -m bench.link_process SETTINGS`` is started by :class:`LinkProcess`; SETTINGS is JSON.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.child import Child, answer
from bench.link import LinkRelay, Outage
from bench.shaping import load_trace

__all__ = ["LinkProcess"]


class LinkProcess:
    """A :class:`bench.link.LinkRelay` elsewhere.  Rates are Mbps, the delay is one way; None is no limit."""

    def __init__(self, child: Child, ports: tuple[int, ...]) -> None:
        self.child = child
        self.ports = ports

    @classmethod
    async def start(
        cls,
        upstreams: Sequence[tuple[str, int]],
        log: Path,
        *,
        uplink_mbps: float | None = None,
        downlink_mbps: float | None = None,
        delay_ms: float = 0.0,
        listen_ports: Sequence[int] | None = None,
    ) -> LinkProcess:
        """Raises ChildError where a listening port is in use."""
        settings = {
            "upstreams": list(upstreams),
            "uplink_bps": _bps(uplink_mbps),
            "downlink_bps": _bps(downlink_mbps),
            "delay_s": delay_ms / 1000,
            "listen_ports": None if listen_ports is None else list(listen_ports),
        }
        argv = [sys.executable, "-m", "bench.link_process", json.dumps(settings)]
        child = await Child.start("the link", argv, log)
        try:
            facts = await child.ready()
        except BaseException:
            await child.stop()
            raise
        return cls(child, tuple(facts["ports"]))

    async def set_rate(self, uplink_mbps: float | None, downlink_mbps: float | None = None) -> None:
        """Both directions at ``uplink_mbps`` where no ``downlink_mbps`` is given."""
        down = uplink_mbps if downlink_mbps is None else downlink_mbps
        await self.child.call("set_rate", uplink_bps=_bps(uplink_mbps), downlink_bps=_bps(down))

    async def set_delay(self, delay_ms: float) -> None:
        await self.child.call("set_delay", delay_s=delay_ms / 1000)

    async def cut(self, outage: Outage = "reset") -> None:
        await self.child.call("cut", outage=outage)

    async def heal(self) -> None:
        await self.child.call("heal")

    async def replay(self, uplink: Path, downlink: Path | None = None) -> None:
        """Follow recorded rates, see :func:`bench.shaping.load_trace`."""
        await self.child.call("replay", uplink=str(uplink), downlink=downlink and str(downlink))

    async def stop(self) -> None:
        await self.child.stop()


def _bps(mbps: float | None) -> float:
    return math.inf if mbps is None else mbps * 1e6


async def _serve(settings: dict[str, Any]) -> None:
    upstreams = [(str(host), int(port)) for host, port in settings.pop("upstreams")]
    with LinkRelay(upstreams, **settings) as relay:
        commands: dict[str, Callable[..., None]] = {
            "set_rate": relay.set_rate,
            "set_delay": relay.set_delay,
            "cut": relay.cut,
            "heal": relay.heal,
            "replay": lambda uplink, downlink: relay.replay(
                load_trace(uplink), load_trace(downlink) if downlink else None
            ),
        }
        await answer(commands, {"ports": relay.ports})


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
