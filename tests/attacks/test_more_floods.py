"""Attack: frames that all say that more will follow, so that ZeroMQ keeps them where no code sees them.

Over plain TCP a peer that has greeted can park one message's worth and some, without a greeting half a
megabyte, and beyond that what the network carries between two looks.  With CURVE nobody else gets to send a
frame.
"""

from __future__ import annotations

import asyncio

import pytest
import zmq

from cloud_cluster.parking import STRANGER_BYTES
from shared.wire import Frame0, MessageType, WireLimits, decode_message, encode_message
from shared.wire.messages import Hello, ModelOffer
from tests.attacks.harness import MIB, rss_bytes, siege
from tests.attacks.raw_zmtp import RawPeer, frame, greeting
from tests.cloud_cluster.cloud_peers import until

PATIENCE_S = 30
MESSAGE_BYTES = 8 * MIB
# The flood would go on for so long; how far it gets before it is cut off is a matter of the machine's speed.
FLOOD_BYTES = 4096 * MIB
SLACK_BYTES = 64 * MIB

HELLO = [
    bytes(part)
    for part in encode_message(
        Hello(agent="raw", software="test", models=[ModelOffer(name="net", digest="sha256:a")])
    )
]
UNITS = {
    "large frames": frame(bytes(MIB), more=True),
    "frames of 255 bytes": frame(bytes(255), more=True) * 2000,
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("at", ["devices", "replicas", "devices, greeted"])
async def test_a_flood_is_cut_off_and_its_memory_given_back(unit: str, at: str) -> None:
    async with asyncio.timeout(PATIENCE_S), siege(max_message_bytes=MESSAGE_BYTES) as besieged:
        before = rss_bytes()
        port = besieged.replica_port if at == "replicas" else besieged.device_port
        async with RawPeer(port) as peer:
            await peer.shake_hands()
            if at == "devices, greeted":
                assert await peer.send_message(HELLO)
            cut_off = asyncio.create_task(peer.flood(UNITS[unit], FLOOD_BYTES))
            while not cut_off.done():
                await besieged.serves()
            assert await cut_off
        await besieged.serves()
        await until(lambda: rss_bytes() - before < SLACK_BYTES)


async def test_a_stranger_parks_no_more_than_a_greeting_might_need() -> None:
    """A little more than that is already closed, however slowly it came."""
    async with asyncio.timeout(PATIENCE_S), siege() as besieged, RawPeer(besieged.device_port) as peer:
        await peer.shake_hands()
        assert await peer.send(frame(bytes(STRANGER_BYTES + 1000), more=True))
        await peer.closed()
        await besieged.serves()


async def test_a_large_message_on_its_way_is_no_flood() -> None:
    """A device's own payload may stand half-sent for as long as a slow link takes."""
    payload = bytes(MESSAGE_BYTES // 2)
    async with (
        asyncio.timeout(PATIENCE_S),
        siege(max_message_bytes=MESSAGE_BYTES) as besieged,
        RawPeer(besieged.device_port) as peer,
    ):
        await peer.shake_hands()
        await peer.send_message(HELLO)
        await besieged.serves()
        message = frame(Frame0(MessageType.PING, 1, tensor_count=1).pack(), more=True)
        message += frame(b"\x81\xabprobe_bytes\xce" + len(payload).to_bytes(4, "big"), more=True)
        message += frame(payload)
        assert await peer.send(message[: len(message) // 2])
        for _ in range(6):
            await besieged.serves()
            await asyncio.sleep(0.1)
        assert await peer.send(message[len(message) // 2 :])
        answers = peer.messages()
        kinds = [decode_message(await anext(answers), WireLimits()).type for _ in range(2)]
        assert kinds == [MessageType.CARD, MessageType.PONG]


async def test_with_curve_a_flood_ends_in_the_greeting() -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    try:
        _, secret = zmq.curve_keypair()
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, secret)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        before = rss_bytes()
        async with asyncio.timeout(PATIENCE_S), RawPeer(port) as peer:
            await peer.send(greeting())
            assert await peer.flood(frame(bytes(MIB), more=True), FLOOD_BYTES)
        assert rss_bytes() - before < SLACK_BYTES
        assert not router.poll(50)
    finally:
        router.close()
        context.term()
