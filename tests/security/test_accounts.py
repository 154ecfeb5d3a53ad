"""What a listed device can and cannot do: sessions and limits belong to keys, not to names of its choice."""

from __future__ import annotations

import asyncio

from edge_agent.link import LinkState
from shared.errors import AuthError, OverloadedError
from shared.wire import MessageType
from shared.wire.messages import Ping
from tests.cloud_cluster.cloud_peers import until
from tests.security.keyring import Keyring, linked


async def test_nobody_gets_into_the_session_of_another_device_by_its_routing_id(keyring: Keyring) -> None:
    keyring.list("jetson")
    keyring.list("intruder")
    async with keyring.gateway() as gateway, keyring.replica(gateway) as replica:
        await replica.hello()
        async with keyring.device(gateway, "jetson", b"jetson") as device:
            await device.hello(net="sha256:a")
            await device.infer(1)
            work = await replica.work()
        # The connection is gone and the session is not: its routing id is free for whoever asks for it.
        assert gateway.status()["devices"] == 1
        async with keyring.device(gateway, "intruder", b"jetson") as intruder:
            refused = await _ping_until_heard(intruder)
            assert refused.header.code == AuthError.code
            assert gateway.status()["devices"] == 0
            await replica.answer(work)
            await replica.settled()
            card = await intruder.hello(net="sha256:a")
            assert card.header.models
            assert intruder.waiting(MessageType.RESULT) == 0


async def _ping_until_heard(peer):  # type: ignore[no-untyped-def]
    """ZeroMQ gives a routing id to the next connection only once it knows that the last one ended."""
    while not peer.waiting(MessageType.ERROR):
        await peer.send(Ping())
        await asyncio.sleep(0.02)
    return await peer.next(MessageType.ERROR)


async def test_limits_count_over_all_connections_of_a_key_and_not_over_those_of_others(
    keyring: Keyring,
) -> None:
    keyring.list("jetson", limits="    max_in_flight = 2\n")
    keyring.list("camera")
    async with (
        keyring.gateway() as gateway,
        keyring.replica(gateway) as replica,
        keyring.device(gateway, "jetson") as first,
        keyring.device(gateway, "jetson") as second,
        keyring.device(gateway, "camera") as other,
    ):
        await replica.hello()
        for device in (first, second):
            assert (await device.hello(net="sha256:a")).header.limits.max_in_flight == 2
        assert (await other.hello(net="sha256:a")).header.limits.max_in_flight == 32
        await first.infer(1)
        await first.settled()
        await second.infer(1)
        await second.settled()
        await second.infer(2)
        refused = await second.next(MessageType.ERROR)
        assert (refused.header.code, refused.request_id) == (OverloadedError.code, 2)
        for request_id in range(1, 5):
            await other.infer(request_id)
        await other.settled()
        assert other.waiting(MessageType.ERROR) == 0


async def test_limits_of_bytes_are_those_of_the_file_and_change_with_it(keyring: Keyring) -> None:
    keyring.list("jetson", limits="    max_in_flight_bytes = 2000\n")
    async with (
        keyring.gateway() as gateway,
        keyring.replica(gateway) as replica,
        keyring.device(gateway, "jetson") as device,
    ):
        await replica.hello()
        assert (await device.hello(net="sha256:a")).header.limits.max_in_flight_bytes == 2000
        await device.infer(1, bytes(3000))
        assert (await device.next(MessageType.ERROR)).header.code == OverloadedError.code
        keyring.list("jetson", limits="    max_in_flight_bytes = 9000\n")
        card = await device.next(MessageType.CARD)
        assert card.header.limits.max_in_flight_bytes == 9000
        await device.infer(2, bytes(3000))
        assert len((await replica.work()).payloads[0]) == 3000


async def test_a_key_has_a_few_sessions_and_the_one_that_is_silent_for_longest_gives_way(
    keyring: Keyring,
) -> None:
    keyring.list("jetson")
    async with keyring.gateway() as gateway:
        devices = [keyring.device(gateway, "jetson") for _ in range(6)]
        try:
            for device in devices:
                await device.hello()
            assert gateway.status()["devices"] == 4
            await devices[0].send(Ping())
            assert "send HELLO again" in (await devices[0].next(MessageType.ERROR)).header.message
            await devices[5].settled()
        finally:
            for device in devices:
                await device.close()


async def test_a_key_that_a_file_lists_under_a_new_name_stays_in(keyring: Keyring) -> None:
    keyring.list("jetson")
    async with (
        keyring.gateway() as gateway,
        linked(gateway.device_endpoint, keyring.of_device("jetson")) as (link, listener),
    ):
        await until(lambda: link.online)
        text = (keyring.devices / "jetson.key").read_text()
        (keyring.devices / "renamed.key").write_text(text)
        await until(lambda: gateway.status()["keys"]["listed"] == 1)
        keyring.revoke("jetson")
        keyring.list("other")
        await until(lambda: gateway.status()["keys"]["listed"] == 2)
        assert link.state is LinkState.ONLINE
        assert [state for state, _ in listener.states] == [LinkState.ONLINE]
