"""Who gets in, who does not, and what both sides say about it: every combination, over real sockets."""

from __future__ import annotations

import asyncio

import pytest
import zmq
import zmq.asyncio

from cloud_cluster.gateway import Gateway
from cloud_cluster.tail import Tail
from edge_agent.keys import LinkKeys
from edge_agent.link import LinkState
from shared.config import ServedModelConfig
from shared.errors import AuthError, ConfigError
from shared.wire import MessageType
from tests.cloud_cluster.cloud_peers import PATIENCE_S, FakeDevice, running_gateway, until
from tests.security.keyring import Keyring, linked

UNLISTED = zmq.curve_keypair()[0].decode()


async def test_a_listed_device_is_served_and_follows_the_load_feed(keyring: Keyring) -> None:
    keyring.list("jetson")
    async with (
        keyring.gateway() as gateway,
        linked(gateway.device_endpoint, keyring.of_device("jetson")) as (link, listener),
    ):
        await until(lambda: link.online)
        await until(lambda: len(listener.loads) > 2)
        status = gateway.status()
        assert status["keys"] == {"public_key": keyring.pairs["gateway"].public, "listed": 1}
        assert status["failed_handshakes"] == {}


async def test_an_unlisted_device_is_told_to_get_listed_and_the_gateway_says_whom_it_refused(
    keyring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    key = keyring.new("stranger").public
    async with (
        keyring.gateway() as gateway,
        linked(gateway.device_endpoint, keyring.of_device("stranger")) as (link, _),
    ):
        await until(lambda: link.state is LinkState.REFUSED)
        assert f"does not list this device's key {key}; put this device's .key file into" in link.reason
        await until(lambda: gateway.status()["failed_handshakes"].get("unlisted key", 0) > 2)
        assert gateway.status()["devices"] == 0
    told = [record.getMessage() for record in caplog.records if key in record.getMessage()]
    assert len(told) == 1, "once per key, however often it knocks"
    assert f"refused 127.0.0.1 at the port for devices: key {key} is not listed" in told[0]
    assert str(keyring.devices) in told[0]


async def test_a_device_that_knows_another_gateways_key_is_told_to_compare(
    keyring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    keyring.list("jetson")
    async with (
        keyring.gateway() as gateway,
        linked(gateway.device_endpoint, keyring.of_device("jetson", server=UNLISTED)) as (link, _),
    ):
        await until(lambda: link.state is LinkState.REFUSED)
        assert f"its public key is not {UNLISTED}; compare cloud.keys.server" in link.reason
        await until(lambda: gateway.status()["failed_handshakes"].get("another gateway's key", 0) > 1)
    told = [text for text in caplog.messages if "takes this gateway for another one" in text]
    assert len(told) == 1, "once a minute"
    assert keyring.pairs["gateway"].public in told[0]


async def test_a_device_without_keys_is_told_to_make_some(
    keyring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    async with keyring.gateway() as gateway, linked(gateway.device_endpoint, None) as (link, _):
        await until(lambda: link.state is LinkState.REFUSED)
        assert "make keys with `edge-agent keys new` and set cloud.keys" in link.reason
        await until(lambda: gateway.status()["failed_handshakes"].get("no keys", 0) > 0)
    assert any("a peer came without keys" in text for text in caplog.messages)


async def test_a_device_with_keys_does_not_talk_to_a_gateway_without(
    keyring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    keyring.list("jetson")
    async with (
        running_gateway() as gateway,
        linked(gateway.device_endpoint, keyring.of_device("jetson")) as (link, _),
    ):
        await until(lambda: link.state is LinkState.REFUSED)
        assert "refused the handshake: it has no keys, or its public key is not" in link.reason
        await until(lambda: gateway.status()["failed_handshakes"].get("keys wanted", 0) > 0)
        assert gateway.status()["devices"] == 0
    assert any("this gateway has none; set gateway.keys" in text for text in caplog.messages)


async def test_a_device_is_listed_while_the_gateway_runs(keyring: Keyring) -> None:
    keyring.new("jetson")
    async with (
        keyring.gateway() as gateway,
        linked(gateway.device_endpoint, keyring.of_device("jetson")) as (link, listener),
    ):
        await until(lambda: link.state is LinkState.REFUSED)
        keyring.list("jetson")
        await until(lambda: link.online)
        await until(lambda: len(listener.loads) > 0)


async def test_a_device_that_is_revoked_loses_its_work_and_its_connections_and_the_others_keep_theirs(
    keyring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    key = keyring.list("jetson").public
    keyring.list("camera")
    async with (
        keyring.gateway() as gateway,
        keyring.replica(gateway) as replica,
        linked(gateway.device_endpoint, keyring.of_device("jetson")) as (revoked, listener),
        linked(gateway.device_endpoint, keyring.of_device("camera")) as (kept, kept_listener),
    ):
        await replica.hello()
        await until(lambda: revoked.online and kept.online and bool(listener.loads))
        before = len(kept_listener.states)
        keyring.revoke("jetson")
        await until(lambda: revoked.state is LinkState.REFUSED)
        await until(lambda: f"does not list this device's key {key}" in revoked.reason)
        assert gateway.status()["devices"] == 1
        # Nothing of the load feed comes any more either, while the other goes on.
        seen, others = len(listener.loads), len(kept_listener.loads)
        await until(lambda: len(kept_listener.loads) > others + 3)
        assert len(listener.loads) == seen
        assert kept.online
        assert kept_listener.states[before:] == []
        keyring.list("jetson")
        await until(lambda: revoked.online)
    assert any(f"device jetson is revoked: its key {key}" in text for text in caplog.messages)


async def test_what_a_revoked_device_still_sends_is_refused_and_its_connection_cut(keyring: Keyring) -> None:
    keyring.list("jetson")
    async with (
        keyring.gateway() as gateway,
        keyring.replica(gateway) as replica,
        keyring.device(gateway, "jetson") as device,
    ):
        await replica.hello()
        await device.hello(net="sha256:a")
        await device.infer(1)
        work = await replica.work()
        monitor = device.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        keyring.revoke("jetson")
        told = await device.next(MessageType.ERROR)
        assert told.header.code == AuthError.code
        assert keyring.pairs["jetson"].public in told.header.message
        # A device that takes no notice: neither work nor hello nor answers get through.
        await device.infer(2)
        await device.greet(net="sha256:a")
        await replica.answer(work)
        async with asyncio.timeout(PATIENCE_S):
            events = [(await monitor.recv_multipart())[0][:2] for _ in range(2)]
        assert events == [
            zmq.EVENT_DISCONNECTED.to_bytes(2, "little"),
            zmq.EVENT_HANDSHAKE_FAILED_AUTH.to_bytes(2, "little"),
        ]
        assert gateway.status()["devices"] == 0
        assert device.waiting(MessageType.RESULT) == 0
        assert device.waiting(MessageType.CARD) == 0
        await replica.settled()
        assert replica.waiting(MessageType.INFER) == 0
        device.socket.disable_monitor()


async def test_a_revoked_device_that_only_listens_hears_nothing_more_of_the_load(keyring: Keyring) -> None:
    pair = keyring.list("jetson")
    async with keyring.gateway(load_period_ms=20) as gateway:
        context = zmq.asyncio.Context()
        follower = context.socket(zmq.SUB)
        LinkKeys(pair, keyring.pairs["gateway"].public).apply(follower)
        follower.subscribe(b"")
        monitor = follower.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        follower.connect(gateway.load_endpoint)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await follower.recv()
                keyring.revoke("jetson")
                assert (await monitor.recv_multipart())[0][:2] == zmq.EVENT_DISCONNECTED.to_bytes(2, "little")
                refused = (await monitor.recv_multipart())[0][:2]
            assert refused == zmq.EVENT_HANDSHAKE_FAILED_AUTH.to_bytes(2, "little")
        finally:
            follower.disable_monitor()
            context.destroy(linger=0)


async def test_a_replica_needs_the_replicas_key_and_a_devices_key_is_none(
    keyring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    key = keyring.list("jetson").public
    async with (
        keyring.gateway() as gateway,
        keyring.replica(gateway, "jetson") as intruder,
        keyring.replica(gateway) as replica,
    ):
        await replica.hello()
        await until(lambda: gateway.status()["failed_handshakes"].get("unlisted key", 0) > 0)
        assert gateway.ready("net") == 1
        assert intruder.waiting(MessageType.PONG) == 0
    assert any(f"at the port for replicas: key {key} is not listed" in text for text in caplog.messages)


async def test_the_replicas_key_opens_neither_the_devices_port_nor_the_load_feed(keyring: Keyring) -> None:
    async with keyring.gateway() as gateway, keyring.peer(FakeDevice, gateway.device_endpoint, "replica"):
        await until(lambda: gateway.status()["failed_handshakes"] == {"unlisted key": 1})


async def test_a_refused_replica_says_why_dials_on_and_is_let_in_by_a_gateway_with_its_key(
    keyring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    old = keyring.of_gateway
    async with keyring.gateway() as gateway:
        endpoint, port = gateway.replica_endpoint, int(gateway.replica_endpoint.rpartition(":")[2])
        for name in ("replica.key", "replica.key_secret"):
            (old.replicas.parent / name).unlink()
        new = keyring.new("replica", old.replicas.parent)
        tail = Tail(ServedModelConfig(name="net"), [endpoint], executor=Idle(), heartbeat_ms=50, keys=old)
        await tail.start()
        try:
            await until(lambda: gateway.status()["failed_handshakes"].get("unlisted key", 0) > 1)
            told = [text for text in caplog.messages if "does not accept the replicas' key" in text]
            assert len(told) == 1
            assert new.public in told[0]
        except BaseException:
            await tail.stop(drain_s=0)
            raise
    # The gateway starts anew, with the key that the replica has by now.
    async with running_gateway(
        config=keyring.gateway_config().model_copy(update={"replica_port": port})
    ) as gateway:
        await until(lambda: gateway.status()["failed_handshakes"] == {})
        running = asyncio.create_task(tail.run())
        await tail.wait_ready()
        assert gateway.ready("net") == 1
        await tail.stop(drain_s=1)
        await running


class Idle:
    """Computes nothing."""

    digest = "sha256:a"
    unit_ms = (1.0,)

    def execute(self, *_: object) -> None:
        raise AssertionError("nobody asks")


@pytest.mark.parametrize("port", ["device_endpoint", "replica_endpoint", "load_endpoint"])
async def test_without_keys_no_port_says_a_word(keyring: Keyring, port: str) -> None:
    """Anybody on the network sees ZeroMQ's greeting of 64 bytes at most, and then the end."""
    async with keyring.gateway() as gateway:
        number = int(getattr(gateway, port).rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        writer.write(b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32))
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
        writer.close()
        assert len(answer) <= 64


def test_other_machines_are_served_with_keys_only(keyring: Keyring) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.host 0\.0\.0\.0 can be reached.*set gateway\.keys"):
        Gateway(keyring.gateway_config().model_copy(update={"host": "0.0.0.0", "keys": None}), [])
    Gateway(keyring.gateway_config(host="0.0.0.0"), [ServedModelConfig(name="net")])
