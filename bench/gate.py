"""A TCP gate that fails on command: the relay of :mod:`bench.link` with the faults of a network on top.

``python -m bench.gate UPSTREAMS`` is a gate in a process of its own, a controlled child (:mod:`bench.child`)
whose commands are the methods of :class:`Gate`; UPSTREAMS is a JSON list of hosts and ports.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import sys
import time
from collections.abc import Sequence
from typing import Literal

from bench.child import answer
from bench.link import LinkRelay, _End

__all__ = ["FAULTS", "Gate", "Towards"]

Towards = Literal["device", "gateway"]

FAULTS = (
    "refuse",
    "blackhole",
    "reset",
    "half_close",
    "half_open",
    "latency",
    "rate",
    "slice",
    "corrupt",
    "drop_after",
)
"""The methods that break something; :meth:`Gate.heal` ends each of them."""


class Gate(LinkRelay):
    """One relayed port per upstream, without a limit until it is told otherwise.

    Faults add up until :meth:`heal`.  Every method may be called from any thread and has acted when it
    returns.  Equal seeds corrupt equal bytes of equal traffic.
    """

    def __init__(
        self, upstreams: Sequence[tuple[str, int]], *, listen_ports: Sequence[int] | None = None
    ) -> None:
        super().__init__(upstreams, listen_ports=listen_ports)
        self._random = random.Random(0)
        self._corrupt_every_bytes = math.inf
        self._corrupt_in_bytes = math.inf
        self._drop_in_bytes: dict[Towards, float] = {}
        self._dropping: set[_End] = set()

    def refuse(self) -> None:
        """Connections break, and new ones are refused."""
        self.cut("reset")

    def blackhole(self) -> None:
        """Bytes stop, and nobody is told."""
        self.cut("black-hole")

    def reset(self) -> None:
        """Connections break, and new ones are taken."""
        self._do(self._close_all)

    def half_close(self, towards: Towards = "device") -> None:
        """One end hears that the other has nothing more to say; what it says itself still arrives."""

        def act() -> None:
            for end in self._facing(towards):
                end.other.read_closed = True
                end.other.lane.offer(end, b"", time.monotonic())

        self._do(act)

    def half_open(self, towards: Towards = "device") -> None:
        """One end's connection breaks and the other end is not told: what it says is lost."""

        def act() -> None:
            for end in self._facing(towards):
                self._watch(end.sock, 0)
                # Its other end goes on, and one day takes this one down with it.
                broken, end.sock = end.sock, socket.socket()
                broken.close()
                self._ends.discard(end)

        self._do(act)

    def latency(self, delay_s: float) -> None:
        """One way, in both directions."""
        self.set_delay(delay_s)

    def rate(self, bps: float) -> None:
        """In each direction."""
        self.set_rate(bps, bps)

    def slice(self, piece_bytes: int = 1) -> None:
        """No write is larger than this."""

        def act() -> None:
            self._write_bytes = piece_bytes

        self._do(act)

    def corrupt(self, every_bytes: float, seed: int = 0) -> None:
        """Flip one bit every so many bytes on average, at random, in both directions."""

        def act() -> None:
            self._random.seed(seed)
            self._corrupt_every_bytes = every_bytes
            self._corrupt_in_bytes = self._random.expovariate(1 / every_bytes)

        self._do(act)

    def drop_after(self, nbytes: int, towards: Towards = "gateway") -> None:
        """Let ``nbytes`` more pass in this direction, then break the connection that carries the next one."""

        def act() -> None:
            self._drop_in_bytes[towards] = nbytes

        self._do(act)

    def heal(self) -> None:
        """End every fault.  Connections that are broken stay so, and new ones are taken."""

        def act() -> None:
            self._write_bytes = None
            self._corrupt_in_bytes = self._corrupt_every_bytes = math.inf
            self._drop_in_bytes.clear()

        self._do(act)
        self.set_rate(math.inf, math.inf)
        self.set_delay(0.0)
        super().heal()

    def _facing(self, towards: Towards) -> list[_End]:
        return [end for end in self._ends if self._reads_from(end) == towards]

    def _reads_from(self, end: _End) -> Towards:
        return "device" if end.lane is self._up else "gateway"

    def _passed_on(self, end: _End, data: bytes) -> bytes:
        towards: Towards = "gateway" if self._reads_from(end) == "device" else "device"
        if towards in self._drop_in_bytes:
            left = self._drop_in_bytes[towards]
            if len(data) > left:
                del self._drop_in_bytes[towards]
                self._dropping.add(end.other)
                end.read_closed = True
                end.lane.offer(end.other, data[: int(left)], time.monotonic())
                return b""
            self._drop_in_bytes[towards] = left - len(data)
        return self._corrupted(data)

    def _corrupted(self, data: bytes) -> bytes:
        self._corrupt_in_bytes -= len(data)
        if self._corrupt_in_bytes >= 0:
            return data
        changed = bytearray(data)
        while self._corrupt_in_bytes < 0:
            changed[math.floor(self._corrupt_in_bytes)] ^= 1 << self._random.randrange(8)
            self._corrupt_in_bytes += max(self._random.expovariate(1 / self._corrupt_every_bytes), 1.0)
        return bytes(changed)

    def _flush(self, end: _End) -> None:
        super()._flush(end)
        if end.finished and end in self._dropping and end in self._ends:
            self._close(end)

    def _close(self, end: _End, orderly: bool = False) -> None:
        self._dropping -= {end, end.other}
        super()._close(end, orderly)


async def _serve(upstreams: Sequence[tuple[str, int]]) -> None:
    with Gate([(str(host), int(port)) for host, port in upstreams]) as gate:
        commands = {name: getattr(gate, name) for name in (*FAULTS, "heal")}
        await answer(commands, {"ports": gate.ports})


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
