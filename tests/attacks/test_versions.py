"""Attack: protocol versions 0 and 255, in messages of every type, at every socket that reads messages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from shared.errors import VersionError
from shared.wire import MessageType, WireLimits, decode_message, peek
from tests.attacks.harness import Attack, joined, siege, try_all, vectors
from tests.attacks.raw_zmtp import RawPeer
from tests.cloud_cluster.test_tail import EchoExecutor, FakeGateway, running_tail

PATIENCE_S = 30


def of_version(frames: list[bytes], version: int) -> list[bytes]:
    return [frames[0][:3] + bytes((version,)) + frames[0][4:], *frames[1:]]


def versioned(step: int) -> Iterator[bytes]:
    for frames in vectors().values():
        for version in (0, *range(2, 256, step)):
            yield joined(of_version(frames, version))


ATTACK = Attack("other protocol versions", "message", versioned)
ATTACKS = (ATTACK,)


def test_no_version_crashes_or_bloats_the_parser() -> None:
    tried = try_all(ATTACK)
    assert tried.inputs == 255 * len(vectors())
    assert tried.peak_bytes < ATTACK.bound_bytes


@pytest.mark.parametrize("version", [0, 255])
def test_whatever_follows_it_is_the_version_that_is_refused(version: int) -> None:
    for frames in vectors().values():
        with pytest.raises(VersionError, match="versions 1 to 1") as refused:
            decode_message(of_version(frames, version), WireLimits())
        seen = peek(frames[0])
        assert seen is not None
        assert refused.value.request_id == seen[2]


@pytest.mark.parametrize("version", [0, 255])
@pytest.mark.parametrize("at", ["devices", "replicas"])
async def test_a_gateway_says_so_clearly_and_goes_on(at: str, version: int) -> None:
    async with asyncio.timeout(PATIENCE_S), siege() as besieged:
        port = besieged.device_port if at == "devices" else besieged.replica_port
        async with RawPeer(port) as peer:
            await peer.shake_hands()
            for frames in list(vectors().values())[:6]:
                await peer.send_message(of_version(frames, version))
                await besieged.serves()
            reply = decode_message(await anext(peer.messages()), WireLimits())
            assert reply.type is MessageType.ERROR
            assert reply.header.code == VersionError.code
            assert f"version {version} is not spoken here; versions 1 to 1 are" in reply.header.message


@pytest.mark.parametrize("version", [0, 255])
async def test_a_replica_goes_on_when_its_gateway_speaks_another_version(version: int) -> None:
    executor = EchoExecutor()
    async with asyncio.timeout(PATIENCE_S), FakeGateway() as gateway:
        tail = asyncio.create_task(_served(executor, gateway))
        replica, _ = await gateway.next(MessageType.REPLICA_HELLO)
        for frames in vectors().values():
            await gateway.socket.send_multipart([replica, *of_version(frames, version)])
        _, refusal = await gateway.next(MessageType.ERROR)
        assert refusal.header.code == VersionError.code
        await gateway.next(MessageType.PING)
        assert executor.begun == 0
        assert not tail.done()
        tail.cancel()
        await asyncio.gather(tail, return_exceptions=True)


async def _served(executor: EchoExecutor, gateway: FakeGateway) -> None:
    async with running_tail(executor, gateway):
        await asyncio.Event().wait()
