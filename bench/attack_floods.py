"""The attacker of ``bench.attack``, a controlled child: floods a gateway over raw TCP for some seconds.

``python -m bench.attack_floods DEVICE_PORT REPLICA_PORT``.  Whoever is cut off comes back at once.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from bench.child import answer
from shared.wire import Frame0, MessageType, encode_message
from shared.wire.messages import Hello
from tests.attacks.raw_zmtp import RawPeer, frame, greeting

__all__ = ["FLOODS"]

MIB = 2**20
_HELLO = [bytes(part) for part in encode_message(Hello(agent="raw", software="bench", models=[]))]
_NOISE = [
    [b"noise"],
    [Frame0(MessageType.INFER, 9, tensor_count=3).pack(), b"\x80"],
    [b"SUT\xff" + bytes(20)],
]
_DRIP_S = 0.2

Assault = Callable[[RawPeer], Coroutine[Any, Any, None]]


async def _more_frames(peer: RawPeer, unit: bytes, greeted: bool) -> None:
    await peer.shake_hands()
    if greeted:
        await peer.send_message(_HELLO)
    await peer.flood(unit, 2**40)


async def _malformed(peer: RawPeer) -> None:
    await peer.shake_hands()
    number = 0
    while await peer.send_message(_NOISE[number % len(_NOISE)]):
        number += 1
        await asyncio.sleep(0)


async def _drips(peer: RawPeer) -> None:
    await peer.send(greeting()[:12])
    while await peer.send(b"\0"):  # noqa: ASYNC110 - that it is slow is the point
        await asyncio.sleep(_DRIP_S)


async def _comes_and_goes(peer: RawPeer) -> None:
    await peer.shake_hands()
    await peer.send_message(_HELLO)


_LARGE, _SMALL = frame(bytes(MIB), more=True), frame(bytes(255), more=True) * 2000

FLOODS: dict[str, tuple[str, int, Assault]] = {
    "MORE frames of 1 MiB": ("devices", 2, partial(_more_frames, unit=_LARGE, greeted=False)),
    "MORE frames of 255 bytes": ("devices", 2, partial(_more_frames, unit=_SMALL, greeted=False)),
    "MORE frames after HELLO": ("devices", 2, partial(_more_frames, unit=_LARGE, greeted=True)),
    "MORE frames at the replicas' port": ("replicas", 2, partial(_more_frames, unit=_LARGE, greeted=False)),
    "malformed messages": ("devices", 4, _malformed),
    "slow loris": ("devices", 400, _drips),
    "coming and going": ("devices", 16, _comes_and_goes),
}
"""By name: at which port, how many at a time, and what each does until it is cut off."""


async def _assault(counts: Counter[str], port: int, assault: Assault) -> None:
    while True:
        try:
            async with RawPeer(port) as peer:
                counts["connections"] += 1
                try:
                    await assault(peer)
                finally:
                    counts["bytes"] += peer.sent_bytes
                    counts["cut off"] += peer.was_closed
        except (OSError, asyncio.IncompleteReadError):
            counts["failed"] += 1
            await asyncio.sleep(_DRIP_S)


async def flood(ports: dict[str, int], name: str, seconds: float) -> dict[str, int]:
    where, at_once, assault = FLOODS[name]
    counts: Counter[str] = Counter()
    tasks = [asyncio.create_task(_assault(counts, ports[where], assault)) for _ in range(at_once)]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if not isinstance(error, asyncio.CancelledError):
            raise RuntimeError(f"the attacker broke: {error!r}")
    return dict(counts)


async def _serve(device_port: int, replica_port: int) -> None:
    # An attacker of its own machine would not compete with the gateway for its processor.
    os.nice(10)
    ports = {"devices": device_port, "replicas": replica_port}
    await answer({"flood": partial(flood, ports)}, {})


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
