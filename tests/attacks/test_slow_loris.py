"""Attack: many connections that never get anywhere, and a few bytes now and then to keep them open."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

import cloud_cluster.gateway
from cloud_cluster.parking import Parking
from tests.attacks.harness import siege
from tests.attacks.raw_zmtp import RawPeer, frame, greeting

PATIENCE_S = 60


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that gives a stranger a fifth of a second to greet."""

    def parking(max_message_bytes: int, max_strangers: int, max_parked_bytes: int) -> Parking:
        return Parking(max_message_bytes, max_strangers, max_parked_bytes, greet_ms=200)

    monkeypatch.setattr(cloud_cluster.gateway, "Parking", parking)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("stage", ["silent", "half a greeting", "no hello", "half a hello"])
async def test_who_does_not_get_on_is_closed(stage: str) -> None:
    async with (
        asyncio.timeout(PATIENCE_S),
        siege() as besieged,
        contextlib.AsyncExitStack() as stack,
    ):
        peers = [await stack.enter_async_context(RawPeer(besieged.device_port)) for _ in range(40)]
        for peer in peers:
            if stage == "half a greeting":
                await peer.send(greeting()[:20])
            elif stage != "silent":
                await peer.shake_hands()
            if stage == "half a hello":
                await peer.send(frame(bytes(24), more=True) + frame(b"x", claimed=200))
        drips = [asyncio.create_task(_drip(peer)) for peer in peers]
        await besieged.serves()
        for peer in peers:
            await peer.closed()
        for drip in drips:
            drip.cancel()
        await asyncio.gather(*drips, return_exceptions=True)


async def _drip(peer: RawPeer) -> None:
    while await peer.send(b"\0"):  # noqa: ASYNC110 - that it is slow is the point
        await asyncio.sleep(0.05)


async def test_there_is_room_for_a_device_however_many_strangers_stand_there() -> None:
    """The oldest strangers make room; a device that has greeted is not one."""
    async with (
        asyncio.timeout(PATIENCE_S),
        siege(max_devices=8) as besieged,
        contextlib.AsyncExitStack() as stack,
    ):
        peers = []
        for _ in range(60):
            peers.append(await stack.enter_async_context(RawPeer(besieged.device_port)))
            await peers[-1].shake_hands()
        await besieged.serves()
        for peer in peers[:52]:
            await peer.closed()
        assert await peers[-1].send(frame(b"still here"))
        await besieged.serves()
