"""The link against a fake gateway on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import zmq

from edge_agent.link import CloudLink, LinkState
from shared.config import CloudLinkConfig
from shared.errors import OverloadedError, SutureError, UnavailableError, VersionError
from shared.wire import Message, MessageType, encode_message, error_reply
from shared.wire.messages import (
    Card,
    Goodbye,
    Hello,
    Infer,
    LoadReport,
    ModelLoad,
    ModelOffer,
    Result,
    TailTimings,
    TensorHeader,
)
from tests.edge_agent.fake_gateway import FakeGateway, eventually


class Listener:
    """Keeps what the link reports."""

    def __init__(self) -> None:
        self.states: list[tuple[LinkState, str]] = []
        self.cards: list[Card] = []
        self.answers: list[Message] = []
        self.refusals: list[tuple[int, SutureError]] = []
        self.spans: list[tuple[int, float]] = []
        self.rtts: list[float] = []
        self.loads: list[LoadReport] = []
        self.bps = 1e9
        self.wanted_probe = 0
        self.probes: list[int] = []

    def on_link_state(self, state: LinkState, reason: str) -> None:
        self.states.append((state, reason))

    def on_card(self, card: Card) -> None:
        self.cards.append(card)

    def on_answer(self, message: Message) -> None:
        self.answers.append(message)

    def on_refusal(self, request_id: int, error: SutureError) -> None:
        self.refusals.append((request_id, error))

    def on_span(self, span_bytes: int, span_ms: float) -> None:
        self.spans.append((span_bytes, span_ms))

    def on_rtt(self, rtt_ms: float) -> None:
        self.rtts.append(rtt_ms)

    def on_load(self, report: LoadReport) -> None:
        self.loads.append(report)

    def uplink_bps(self) -> float:
        return self.bps

    def probe_bytes(self) -> int:
        return self.wanted_probe

    def on_probe_sent(self, probe_bytes: int) -> None:
        self.probes.append(probe_bytes)
        self.wanted_probe = 0


HELLO = Hello(agent="test", software="test", models=[ModelOffer(name="net", digest="sha256:1")])
TENSOR = TensorHeader(slot=0, dtype=1, codec=0x10, shape=[2], order=[0], payload_bytes=8)


FAST = {
    "heartbeat_ms": 20.0,
    "heartbeat_timeout_ms": 150.0,
    "reconnect_min_ms": 10.0,
    "reconnect_max_ms": 50.0,
}


def config(endpoint: str, **values: float) -> CloudLinkConfig:
    return CloudLinkConfig(gateway=endpoint, **{**FAST, **values})


@contextlib.asynccontextmanager
async def linked(endpoint: str, listener: Listener, **values: float) -> AsyncIterator[CloudLink]:
    link = CloudLink(config(endpoint, **values), HELLO, listener)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(link.run())
        yield link
        task.cancel()
    assert link.state is LinkState.CLOSED


def send(link: CloudLink, request_id: int = 7, payload: bytes = b"12345678", **infer: object) -> bool:
    header = TENSOR if len(payload) == 8 else _sized(len(payload))
    return link.send_infer(
        request_id,
        Infer(batch=1, tensors=[header], reply_codec=0x10),
        [payload],
        model=3,
        cut=2,
        codec=0x10,
        budget_ms=500.9,
        result_bytes=int(infer.get("result_bytes", 0)),  # type: ignore[call-overload]
    )


def _sized(nbytes: int) -> TensorHeader:
    return TensorHeader(slot=0, dtype=6, codec=0x10, shape=[nbytes], order=[0], payload_bytes=nbytes)


async def test_it_says_hello_takes_the_card_and_measures_the_round_trip() -> None:
    listener = Listener()
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: len(listener.rtts) >= 3)
        assert link.state is LinkState.ONLINE
        assert [state for state, _ in listener.states] == [LinkState.ONLINE]
        assert listener.cards == [gateway.card]
        (hello,) = gateway.of(MessageType.HELLO)
        assert hello.header == HELLO
        assert all(0 < rtt < 1000 for rtt in listener.rtts)


async def test_work_is_announced_carries_its_budget_and_brings_answer_and_span() -> None:
    listener = Listener()
    listener.bps = 64_000.0
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:

        def answer(message: Message) -> None:
            result = Result(tensors=[TENSOR], timings=TailTimings(), span_ms=4.0, span_bytes=8)
            gateway.send(result, (b"abcdefgh",), message.request_id)

        gateway.on_infer = answer
        await eventually(lambda: link.online)
        assert send(link)
        assert link.unconfirmed_bytes == 8
        await eventually(lambda: listener.answers)
        assert link.unconfirmed_bytes == 0
        (announce,), (infer,) = gateway.of(MessageType.ANNOUNCE), gateway.of(MessageType.INFER)
        assert gateway.got.index(announce) == gateway.got.index(infer) - 1
        assert (announce.request_id, announce.header.payload_bytes) == (7, 8)
        assert (infer.request_id, infer.model, infer.cut, infer.codec, infer.budget_ms) == (
            7,
            3,
            2,
            0x10,
            500,
        )
        assert bytes(infer.payloads[0]) == b"12345678"
        (message,) = listener.answers
        assert (message.request_id, bytes(message.payloads[0])) == (7, b"abcdefgh")
        assert listener.spans == [(8, 4.0)]


async def test_a_small_payload_on_a_fast_link_is_not_announced() -> None:
    listener = Listener()
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: link.online)
        listener.bps = 64_000.0  # 8 bytes take a millisecond
        assert send(link, 1)
        listener.bps = 65_000.0
        assert send(link, 2)
        await eventually(lambda: len(gateway.of(MessageType.INFER)) == 2)
        assert [announce.request_id for announce in gateway.of(MessageType.ANNOUNCE)] == [1]
        assert link.unconfirmed_bytes == 16


async def test_an_error_for_a_request_is_told_and_the_session_goes_on() -> None:
    listener = Listener()
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        gateway.on_infer = lambda message: gateway.send(
            error_reply(OverloadedError("full", 40.0)), request_id=message.request_id
        )
        await eventually(lambda: link.online)
        assert send(link)
        await eventually(lambda: listener.refusals)
        ((request_id, error),) = listener.refusals
        assert request_id == 7
        assert isinstance(error, OverloadedError)
        assert error.retry_after_ms == 40.0
        assert link.online


async def test_without_a_gateway_it_says_so_once_takes_no_work_and_finds_a_late_one() -> None:
    listener = Listener()
    gateway = FakeGateway()
    async with gateway.serving():
        pass  # takes a free port and gives it back
    async with linked(gateway.endpoint, listener) as link:
        await asyncio.wait_for(link.first_contact.wait(), 20)
        assert not send(link)
        await asyncio.sleep(0.2)  # several more attempts
        assert [state for state, _ in listener.states] == [LinkState.OFFLINE]
        async with gateway.serving():
            await eventually(lambda: link.online)


async def test_a_silent_gateway_is_noticed_and_what_was_queued_is_never_delivered_late() -> None:
    listener = Listener()
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: link.online)
        gateway.alive = False
        await eventually(lambda: not link.online)
        assert "nothing heard" in link.reason
        assert not send(link)
        gateway.alive = True
        await eventually(lambda: link.online)
        assert len(gateway.of(MessageType.HELLO)) >= 2
        assert gateway.of(MessageType.INFER) == []


async def test_a_gateway_that_dies_is_noticed_without_waiting_for_a_timeout() -> None:
    listener = Listener()
    gateway = FakeGateway()
    async with linked_after(gateway, listener) as link:
        await eventually(lambda: not link.online)
        assert "closed the connection" in link.reason or "nothing answers" in link.reason


@contextlib.asynccontextmanager
async def linked_after(gateway: FakeGateway, listener: Listener) -> AsyncIterator[CloudLink]:
    """Online with heartbeats that would take minutes; the gateway is then gone."""
    async with contextlib.AsyncExitStack() as stack:
        serving = gateway.serving()
        await serving.__aenter__()
        link = await stack.enter_async_context(
            linked(gateway.endpoint, listener, heartbeat_ms=60_000.0, heartbeat_timeout_ms=120_000.0)
        )
        await eventually(lambda: link.online)
        await serving.__aexit__(None, None, None)
        yield link


async def test_a_long_transfer_excuses_silence() -> None:
    """At the estimated 0.2 Mbps a payload of 100 kB occupies the link for 4 s: that is no outage."""
    listener = Listener()
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: link.online and listener.rtts)
        await eventually(lambda: link.unconfirmed_bytes == 0)
        listener.bps = 0.2e6
        gateway.alive = False
        assert send(link, payload=bytes(100_000))
        await asyncio.sleep(0.6)  # four timeouts
        assert link.online
        rtts = len(listener.rtts)
        gateway.alive = True
        await asyncio.sleep(0.1)
        assert link.online
        # Heartbeats that were sent behind the payload do not count as round trips.
        assert all(rtt < 500 for rtt in listener.rtts[rtts:])


async def test_a_feed_that_falls_silent_too_takes_the_excuse_away() -> None:
    """What comes over the feed's own connection says whether a long transfer or an outage is the cause."""
    listener = Listener()
    listener.bps = 0.2e6
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: link.online and listener.rtts)
        session = link._session
        assert session is not None
        report = LoadReport(gateway="fake", sequence=1, models=[])
        session._on_load(session._own_feed, report)
        await asyncio.sleep(0.01)
        session._on_load(session._own_feed, report)
        gateway.alive = False
        assert send(link, payload=bytes(100_000))  # 4 s at the estimated rate
        sent_ms = asyncio.get_running_loop().time() * 1000
        for _ in range(20):
            await asyncio.sleep(0.02)
            session._on_load(session._own_feed, report)
        assert link.online
        assert session.silence.lost_ms() >= session.silence._feed_heard_ms + 150.0
        await eventually(lambda: not link.online)  # the feed has ended
        assert "nothing heard" in link.reason
        assert list(session.silence._pings.values())[-1].due_ms > sent_ms + 4000


async def test_a_link_that_became_slower_than_thought_is_not_lost_while_the_feed_goes_on() -> None:
    """A probe at the old rate takes far longer than estimated; cut short, it would teach nothing."""
    listener = Listener()
    listener.bps = 100e6
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: link.online and listener.rtts)
        await eventually(lambda: link.unconfirmed_bytes == 0)
        session = link._session
        assert session is not None
        report = LoadReport(gateway="fake", sequence=1, models=[])
        gateway.alive = False
        assert send(link, payload=bytes(30_000))  # 2.4 ms at the estimated rate
        for _ in range(30):
            session._on_load(session._own_feed, report)
            await asyncio.sleep(0.02)  # four timeouts in all
        assert link.online
        gateway.alive = True
        await eventually(lambda: link.unconfirmed_bytes == 0)
        assert link.online

        gateway.alive = False
        session._on_load(session._own_feed, report)
        assert session.send_ping(0)
        request_id, oldest = next(iter(session.silence._pings.items()))
        now = asyncio.get_running_loop().time() * 1000
        session.silence.heard_ms = now - 5000.0
        session.silence._pings[request_id] = oldest._replace(sent_ms=now - 1000.0, due_ms=now - 800.0)
        assert session.silence.lost_ms() <= now  # nothing of ours is under way
        assert send(link, payload=bytes(30_000))
        assert session.silence.lost_ms() > now + 100.0
        session.silence._pings[request_id] = oldest._replace(sent_ms=now - 5000.0, due_ms=now - 4800.0)
        assert session.silence.lost_ms() <= now  # not for ever


async def test_a_short_transfer_does_not_put_off_that_an_outage_is_noticed() -> None:
    """60 ms on the link, taken twice, fit into what a heartbeat may take anyway: 150 ms less the 20 ms."""
    listener = Listener()
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: link.online and listener.rtts)
        await eventually(lambda: link.unconfirmed_bytes == 0)
        session = link._session
        assert session is not None
        gateway.alive = False
        listener.bps = 100_000 * 8 / 0.060
        assert send(link, payload=bytes(100_000))
        assert session.send_ping(0)
        waits_ms = session.silence.lost_ms() - asyncio.get_running_loop().time() * 1000
        assert waits_ms <= 150.0 + session.silence.rtt_ms
        listener.bps /= 10
        assert session.send_ping(0)
        excused = list(session.silence._pings.values())[-1]
        assert excused.due_ms - excused.sent_ms == pytest.approx(1200.0 + session.silence.rtt_ms)


async def test_a_gateway_that_refuses_the_hello_is_reported_with_its_reason() -> None:
    listener = Listener()
    async with FakeGateway().serving() as gateway:
        gateway.card = None
        async with linked(gateway.endpoint, listener) as link:
            await eventually(lambda: gateway.of(MessageType.HELLO))
            gateway.device = gateway.device or b""
            hello = gateway.of(MessageType.HELLO)[0]
            gateway.send(
                error_reply(VersionError("versions 2 to 3 are spoken here")), request_id=hello.request_id
            )
            await eventually(lambda: link.state is LinkState.REFUSED)
            assert "versions 2 to 3" in link.reason


async def test_a_gateway_that_has_forgotten_the_session_gets_a_new_hello() -> None:
    listener = Listener()
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: link.online)
        ping = gateway.of(MessageType.PING)
        await eventually(lambda: gateway.of(MessageType.PING) != ping)
        last = gateway.of(MessageType.PING)[-1]
        gateway.send(error_reply(UnavailableError("no session")), request_id=last.request_id)
        await eventually(lambda: len(gateway.of(MessageType.HELLO)) == 2)
        await eventually(lambda: link.online)
        assert [state for state, _ in listener.states] == [
            LinkState.ONLINE,
            LinkState.OFFLINE,
            LinkState.ONLINE,
        ]


@pytest.mark.parametrize(
    "frames",
    [
        [b"hello"],
        [b"", b""],
        encode_message(HELLO),
        encode_message(Result(tensors=[], timings=TailTimings()))[:1],
    ],
)
async def test_bytes_that_are_no_message_for_a_device_end_the_session(frames: list[bytes]) -> None:
    listener = Listener()
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: link.online)
        gateway.send_raw(frames)
        await eventually(lambda: LinkState.REFUSED in [state for state, _ in listener.states])
        await eventually(lambda: link.online)


async def test_goodbye_ends_the_session() -> None:
    listener = Listener()
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: link.online)
        gateway.send(Goodbye(reason="an upgrade"))
        await eventually(lambda: listener.states[-1][0] is LinkState.OFFLINE or len(listener.states) > 2)
        assert "an upgrade" in listener.states[1][1]


async def test_a_wanted_probe_is_announced_and_measures_a_span() -> None:
    listener = Listener()
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: link.online)
        listener.wanted_probe = 20_000
        await eventually(lambda: listener.spans)
        assert listener.spans == [(20_000, 8.0)]
        assert listener.probes == [20_000]
        assert gateway.of(MessageType.ANNOUNCE)[0].header.payload_bytes == 20_000


async def test_cancel_and_goodbye_reach_the_gateway() -> None:
    listener = Listener()
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, listener) as link:
        await eventually(lambda: link.online)
        assert send(link)
        link.send_cancel(7)
        link.close()
        await eventually(lambda: gateway.of(MessageType.GOODBYE))
        assert [message.request_id for message in gateway.of(MessageType.CANCEL)] == [7]


async def test_the_load_feed_of_the_card_is_followed() -> None:
    listener = Listener()
    context = zmq.Context()
    feed = context.socket(zmq.PUB)
    port = feed.bind_to_random_port("tcp://127.0.0.1")
    gateway = FakeGateway()
    assert gateway.card is not None
    gateway.card = Card(
        gateway="fake",
        software="test",
        limits=gateway.card.limits,
        models=gateway.card.models,
        load_endpoint=f"tcp://0.0.0.0:{port}",
    )
    load = ModelLoad(name="net", ready=1, starting=0, target=1, queue_ms=0, wait_ms=3, slowdown=1)
    try:
        async with gateway.serving(), linked(gateway.endpoint, listener):
            sequence = 0

            def published() -> bool:
                nonlocal sequence
                sequence += 1
                report = LoadReport(gateway="fake", sequence=sequence, models=[load])
                feed.send_multipart(encode_message(report))
                return bool(listener.loads)

            await eventually(published)
            assert listener.loads[0].models == [load]
    finally:
        feed.close(linger=0)
        context.term()


@contextlib.asynccontextmanager
async def cluster(size: int) -> AsyncIterator[dict[str, FakeGateway]]:
    """Gateways by endpoint, each named by its place."""
    async with contextlib.AsyncExitStack() as stack:
        gateways = {}
        for number in range(size):
            gateway = FakeGateway()
            assert gateway.card is not None
            gateway.card = msgspec.structs.replace(gateway.card, gateway=f"gateway {number}")
            await stack.enter_async_context(gateway.serving())
            gateways[gateway.endpoint] = gateway
        yield gateways


@contextlib.asynccontextmanager
async def linked_to(endpoints: list[str], listener: Listener, **values: Any) -> AsyncIterator[CloudLink]:
    made = CloudLinkConfig(gateway=endpoints, **{**FAST, **values})
    link = CloudLink(made, HELLO, listener, rng=random.Random(3))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(link.run())
        yield link
        task.cancel()


def serving(link: CloudLink, gateways: dict[str, FakeGateway]) -> FakeGateway:
    assert link.online
    return gateways[link.reason.rpartition(" at ")[2]]


async def test_a_device_moves_on_when_its_gateway_falls_silent_or_says_goodbye_and_back_when_it_must() -> (
    None
):
    listener = Listener()
    async with cluster(2) as gateways, linked_to(list(gateways), listener) as link:
        await eventually(lambda: link.online)
        first = serving(link, gateways)
        (second,) = (each for each in gateways.values() if each is not first)
        first.alive = False
        await eventually(lambda: link.online and serving(link, gateways) is second)
        states = [state for state, _ in listener.states]
        assert states == [LinkState.ONLINE, LinkState.OFFLINE, LinkState.ONLINE]
        assert [card.gateway for card in listener.cards] == [first.card.gateway, second.card.gateway]
        assert send(link)
        await eventually(lambda: second.of(MessageType.INFER))
        first.alive = True
        second.send(Goodbye(reason="an upgrade"))
        await eventually(lambda: link.online and serving(link, gateways) is first)


async def test_a_gateway_that_nobody_is_at_or_that_never_answers_costs_only_its_turn() -> None:
    listener = Listener()
    silent, nobody = FakeGateway(), FakeGateway()
    silent.alive = False
    async with nobody.serving():
        pass
    async with cluster(1) as gateways, silent.serving():
        (good,) = gateways
        endpoints = [silent.endpoint, nobody.endpoint, good]
        for seed in range(4):  # in several orders
            link = CloudLink(
                CloudLinkConfig(gateway=endpoints, **FAST), HELLO, listener, rng=random.Random(seed)
            )
            task = asyncio.ensure_future(link.run())
            await eventually(lambda link=link: link.online)
            assert serving(link, gateways).endpoint == good
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_gateways_and_feeds_that_a_card_names_are_used() -> None:
    """The device was told of one gateway; the others, and their load, it learns of there."""
    listener = Listener()
    context = zmq.Context()
    feeds = [context.socket(zmq.PUB) for _ in range(2)]
    load_endpoints = [f"tcp://127.0.0.1:{feed.bind_to_random_port('tcp://127.0.0.1')}" for feed in feeds]
    sequence = itertools.count(1)

    def publish(*numbers: int) -> None:
        for number in numbers:
            report = LoadReport(gateway=f"gateway {number}", sequence=next(sequence), models=[])
            feeds[number].send_multipart(encode_message(report))

    try:
        async with cluster(2) as gateways:
            for gateway, own in zip(gateways.values(), load_endpoints, strict=True):
                gateway.card = msgspec.structs.replace(
                    gateway.card, load_endpoint=own, load_endpoints=load_endpoints, gateways=list(gateways)
                )
            told = next(iter(gateways))
            async with linked_to([told], listener) as link:

                def both_heard() -> bool:
                    publish(0, 1)
                    return {"gateway 0", "gateway 1"} <= {report.gateway for report in listener.loads}

                await eventually(both_heard)
                assert serving(link, gateways).endpoint == told
                gateways[told].alive = False

                def moved() -> bool:
                    publish(0, 1)
                    return link.online and serving(link, gateways).endpoint != told

                await eventually(moved)
                # The feed of the gateway that is lost excused nothing once it was not ours.
                listener.loads.clear()

                def still_heard() -> bool:
                    publish(0, 1)
                    return {"gateway 0", "gateway 1"} <= {report.gateway for report in listener.loads}

                await eventually(still_heard)
    finally:
        for feed in feeds:
            feed.close(linger=0)
        context.term()


async def test_another_gateways_feed_that_is_none_takes_nothing_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = Listener()
    context = zmq.Context()
    feed = context.socket(zmq.PUB)
    port = feed.bind_to_random_port("tcp://127.0.0.1")
    try:
        async with cluster(1) as gateways:
            (gateway,) = gateways.values()
            gateway.card = msgspec.structs.replace(
                gateway.card, load_endpoints=[f"tcp://127.0.0.1:{port}"], gateways=[gateway.endpoint]
            )
            async with linked(gateway.endpoint, listener) as link:

                def complained() -> bool:
                    feed.send(b"something else")
                    return "is no load feed" in caplog.text

                await eventually(complained)
                assert link.online
                assert [state for state, _ in listener.states] == [LinkState.ONLINE]
    finally:
        feed.close(linger=0)
        context.term()


async def test_a_name_is_dialled_at_every_address_and_looked_up_anew_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = Listener()
    async with cluster(1) as gateways:
        (gateway,) = gateways.values()
        port = int(gateway.endpoint.rpartition(":")[2])
        asked = 0

        def getaddrinfo(host: str, *_: Any, **__: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise socket.gaierror(-3, "Temporary failure in name resolution")
            hosts = ["127.0.0.2"] if asked == 2 else ["127.0.0.2", "127.0.0.1"]
            return [(0, socket.SOCK_STREAM, 6, "", (each, port)) for each in hosts]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        async with linked(f"tcp://gateways.example:{port}", listener) as link:
            await eventually(lambda: link.online)
            assert link.reason.endswith(f"at tcp://127.0.0.1:{port}")
            assert asked >= 3
            assert "cannot look up tcp://gateways.example" in listener.states[0][1]


async def test_what_lacked_a_replica_is_told_once_with_the_next_heartbeat() -> None:
    async with FakeGateway().serving() as gateway, linked(gateway.endpoint, Listener()) as link:
        await eventually(lambda: link.online)
        for index in (5, 3, 5):
            link.want(index)

        def told() -> list[object]:
            return [ping.header.wanted for ping in gateway.of(MessageType.PING)]

        await eventually(lambda: [3, 5] in told())
        await eventually(lambda: len(told()) > told().index([3, 5]) + 2)
        assert [each for each in told() if each is not msgspec.UNSET] == [[3, 5]]
