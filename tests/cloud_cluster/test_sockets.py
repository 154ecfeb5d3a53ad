from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from cloud_cluster.sockets import Inbox, let_go, require_loopback, tcp_endpoint, try_send
from shared.errors import ConfigError
from tests.cloud_cluster.cloud_peers import until

Pair = tuple[zmq.Socket[Any], zmq.Socket[Any]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    context = zmq.Context()
    left, right = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    left.bind("inproc://pair")
    right.connect("inproc://pair")
    yield left, right
    context.destroy(linger=0)


async def test_every_message_arrives_once_and_in_order_and_the_loop_is_not_starved(pair: Pair) -> None:
    left, right = pair
    for number in range(900):
        right.send_multipart([b"%d" % number, b"payload"])
    seen: list[int] = []
    others: list[int] = []
    inbox = Inbox(left, lambda frames: seen.append(int(frames[0].bytes)))

    async def other() -> None:
        while len(seen) < 900:
            others.append(len(seen))
            await asyncio.sleep(0)

    async with asyncio.timeout(20):
        await other()
    assert seen == list(range(900))
    # The other task had its turn all along, at the latest after every few dozen messages.
    assert len(others) > 10
    inbox.close()


async def test_a_message_whose_signal_a_send_has_taken_is_found_after_a_nudge(pair: Pair) -> None:
    left, right = pair
    seen: list[bytes] = []
    inbox = Inbox(left, lambda frames: seen.append(frames[0].bytes))
    await asyncio.sleep(0)
    right.send(b"hello")
    left.getsockopt(zmq.EVENTS)  # takes the edge, as a send would
    inbox.nudge()
    await until(lambda: seen == [b"hello"])
    inbox.close()


async def test_a_defect_in_the_handler_stops_the_reading_and_is_raised(pair: Pair) -> None:
    left, right = pair
    seen: list[bytes] = []

    def handler(frames: list[zmq.Frame]) -> None:
        seen.append(frames[0].bytes)
        raise KeyError("a defect")

    inbox = Inbox(left, handler)
    right.send(b"1")
    right.send(b"2")
    with pytest.raises(KeyError, match="a defect"):
        async with asyncio.timeout(20):
            await inbox.failed()
    assert seen == [b"1"]


async def test_a_closed_inbox_calls_nobody(pair: Pair) -> None:
    left, right = pair
    seen: list[object] = []
    inbox = Inbox(left, seen.append)
    right.send(b"1")
    inbox.nudge()
    inbox.close()
    inbox.close()
    await asyncio.sleep(0.02)
    assert seen == []


def test_sending_to_nobody_is_an_answer_not_an_exception() -> None:
    context = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    assert not try_send(router, [b"nobody", b"hello"])
    dealer.setsockopt(zmq.IMMEDIATE, 1)
    assert not try_send(dealer, [b"hello"])
    context.destroy(linger=0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    require_loopback(host, keys=False, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "*"])
def test_other_addresses_are_refused_unless_asked_for(host: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){host.replace('*', '.')}.*gateway.keys.*insecure"):
        require_loopback(host, keys=False, insecure=False)
    require_loopback(host, keys=False, insecure=True)
    require_loopback(host, keys=True, insecure=False)


def test_an_ipv6_address_is_bracketed() -> None:
    assert tcp_endpoint("::1", 5556) == "tcp://[::1]:5556"
    assert tcp_endpoint("127.0.0.1", "*") == "tcp://127.0.0.1:*"


async def test_a_context_is_ended_and_one_that_does_not_end_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    await let_go(context, patience_s=0.05)
    assert "left behind" in caplog.text
    assert not context.closed
    caplog.clear()
    # What holds it up ends after all: so does the thread that waits for it.
    socket.close()
    await until(lambda: context.closed)
    another = zmq.Context()
    await let_go(another, patience_s=20)
    assert another.closed
    assert not caplog.records
