"""Attack: a peer that goes on sending what is no message.  It is answered, told that it is out, and cut."""

from __future__ import annotations

import asyncio

import pytest

from cloud_cluster.strikes import Strikes
from shared.errors import ProtocolError
from shared.wire import Frame0, MessageType, WireLimits, decode_message
from tests.attacks.harness import siege
from tests.attacks.raw_zmtp import RawPeer

PATIENCE_S = 30
LIMIT = Strikes().limit
BAD = {
    "noise": [b"\xff" * 24, b"\x80"],
    "no frames": [b""],
    "a header of garbage": [Frame0(MessageType.HELLO, 9).pack(), b"\xc1"],
    "an unknown version": [b"SUT\xff" + Frame0(MessageType.PING, 9).pack()[4:], b"\x80"],
}


async def errors_until_cut(peer: RawPeer) -> list[int]:
    """The codes of the errors that came before the connection was closed."""
    codes = []
    async for frames in peer.messages():
        message = decode_message(frames, WireLimits())
        if message.type is MessageType.ERROR:
            codes.append(message.header.code)
    return codes


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("at", ["devices", "replicas"])
async def test_strikes_lead_to_disconnection_and_the_honest_are_served_meanwhile(at: str, name: str) -> None:
    async with asyncio.timeout(PATIENCE_S), siege() as besieged:
        port = besieged.device_port if at == "devices" else besieged.replica_port
        async with RawPeer(port) as peer:
            await peer.shake_hands()
            for _ in range(LIMIT - 1):
                await peer.send_message(BAD[name])
            await besieged.serves()
            assert not peer.was_closed
            for _ in range(LIMIT):
                await peer.send_message(BAD[name])
            codes = await errors_until_cut(peer)
            await besieged.serves()
        # Every one is answered, an unknown version once; the last word is why the connection ends.
        assert set(codes) <= {kind.code for kind in (ProtocolError, *ProtocolError.__subclasses__())}
        assert codes[-1] == ProtocolError.code or at == "replicas"
        assert len(codes) <= LIMIT + 1
        if name == "noise":
            assert len(codes) >= LIMIT - (at == "replicas")  # the last one races with the end


async def test_a_peer_that_comes_back_under_its_name_stays_out_and_another_is_let_in() -> None:
    async with asyncio.timeout(PATIENCE_S), siege() as besieged:
        async with RawPeer(besieged.device_port, identity=b"mischief") as peer:
            await peer.shake_hands()
            for _ in range(LIMIT):
                await peer.send_message(BAD["noise"])
            await errors_until_cut(peer)
        for identity, hears in ((b"mischief", False), (b"another", True)):
            async with RawPeer(besieged.device_port, identity=identity) as peer:
                await peer.shake_hands()
                await peer.send_message(BAD["noise"])
                await besieged.serves()
                heard = asyncio.create_task(anext(peer.messages()))
                await asyncio.wait([heard], timeout=PATIENCE_S if hears else 0.2)
                assert heard.done() is hears
                heard.cancel()
                await asyncio.gather(heard, return_exceptions=True)
