from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.child import ChildError
from bench.link import LinkRelay
from bench.link_check import main as check
from bench.link_process import LinkProcess
from bench.shaping import Trace


class Pair:
    """Both ends of one connection through a relay."""

    def __init__(self, server: socket.socket, port: int) -> None:
        self.near = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.far, _ = server.accept()
        self.far.settimeout(10)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        yield listening


@pytest.fixture
def relay(server: socket.socket) -> Iterator[LinkRelay]:
    with LinkRelay([server.getsockname()[:2]]) as running:
        yield running


@pytest.fixture
def pair(server: socket.socket, relay: LinkRelay) -> Iterator[Pair]:
    connected = Pair(server, relay.ports[0])
    yield connected
    connected.close()


def receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


def send_until_blocked(sock: socket.socket, at_most: int) -> int:
    accepted = 0
    while accepted < at_most:
        try:
            accepted += sock.send(bytes(16_384))
        except TimeoutError:
            return accepted
    pytest.fail(f"{accepted} bytes were accepted and nothing pushed back")


def connect_and_read(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        return client.recv(1)


def is_silent(sock: socket.socket) -> bool:
    sock.settimeout(0.15)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(10)
    return False


def test_all_bytes_arrive_in_order_in_both_directions_at_once(pair: Pair, relay: LinkRelay) -> None:
    relay.set_rate(200e6)
    up = bytes(range(256)) * 8000
    down = bytes(reversed(range(256))) * 8000
    senders = [threading.Thread(target=pair.near.sendall, args=(up,))]
    senders.append(threading.Thread(target=pair.far.sendall, args=(down,)))
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(receive(pair.near, len(down))))
    for thread in (*senders, reader):
        thread.start()
    assert receive(pair.far, len(up)) == up
    for thread in (*senders, reader):
        thread.join()
    assert got == [down]


def test_a_slow_link_is_felt_by_the_sender(pair: Pair, relay: LinkRelay) -> None:
    relay.set_rate(0.0)
    pair.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    pair.near.settimeout(0.2)
    accepted = send_until_blocked(pair.near, 2**21)
    assert accepted < 400_000, "the link swallowed what it cannot carry"
    assert is_silent(pair.far)
    relay.set_rate(200e6)
    assert receive(pair.far, accepted) == bytes(accepted)


def test_a_far_end_that_does_not_read_stops_the_sender(pair: Pair) -> None:
    pair.near.settimeout(0.5)
    accepted = send_until_blocked(pair.near, 2**26)
    assert receive(pair.far, accepted) == bytes(accepted)


def test_the_end_of_a_stream_travels_one_way_only(pair: Pair) -> None:
    pair.near.sendall(b"question")
    pair.near.shutdown(socket.SHUT_WR)
    assert receive(pair.far, 100) == b"question"
    pair.far.sendall(b"answer")
    pair.far.close()
    assert receive(pair.near, 100) == b"answer"


def test_a_reset_breaks_and_refuses_until_it_heals(
    server: socket.socket, relay: LinkRelay, pair: Pair
) -> None:
    [port] = relay.ports
    relay.cut("reset")
    with pytest.raises(ConnectionResetError):
        pair.near.recv(1)
    with pytest.raises(ConnectionResetError):
        pair.far.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    relay.heal()
    assert relay.ports == (port,)
    again = Pair(server, port)
    again.near.sendall(b"back")
    assert receive(again.far, 4) == b"back"
    again.close()


def test_a_black_hole_is_silent_and_loses_nothing(
    server: socket.socket, relay: LinkRelay, pair: Pair
) -> None:
    relay.cut("black-hole")
    pair.near.sendall(b"up")
    pair.far.sendall(b"down")
    assert is_silent(pair.near)
    assert is_silent(pair.far)
    late = socket.create_connection(("127.0.0.1", relay.ports[0]), timeout=10)
    server.settimeout(0.15)
    with pytest.raises(TimeoutError):
        server.accept()
    server.settimeout(10)
    relay.heal()
    assert receive(pair.far, 2) == b"up"
    assert receive(pair.near, 4) == b"down"
    server.accept()[0].close()
    late.close()


def test_both_ends_may_leave_during_an_outage(server: socket.socket, relay: LinkRelay) -> None:
    for _ in range(10):
        pair = Pair(server, relay.ports[0])
        pair.near.sendall(b"x")
        assert receive(pair.far, 1) == b"x"
        relay.cut("black-hole")
        pair.near.sendall(bytes(500_000))
        pair.far.sendall(bytes(500_000))
        pair.close()
        relay.heal()
    again = Pair(server, relay.ports[0])
    again.near.sendall(b"back")
    assert receive(again.far, 4) == b"back"
    again.close()


def test_one_outage_may_turn_into_the_other(server: socket.socket, relay: LinkRelay, pair: Pair) -> None:
    relay.cut("black-hole")
    relay.cut("reset")
    relay.cut("reset")
    with pytest.raises(ConnectionResetError):
        pair.near.recv(1)
    relay.heal()
    relay.heal()
    Pair(server, relay.ports[0]).close()


def test_a_rate_set_during_an_outage_counts_after_it(pair: Pair, relay: LinkRelay) -> None:
    relay.cut("black-hole")
    relay.set_rate(100e6)
    pair.near.sendall(b"x")
    assert is_silent(pair.far)
    relay.heal()
    assert receive(pair.far, 1) == b"x"


def test_a_dead_stretch_of_a_recording_is_dead_until_a_rate_is_set(pair: Pair, relay: LinkRelay) -> None:
    relay.replay(Trace(((3600.0, 0.0),)))
    pair.near.sendall(b"x")
    assert is_silent(pair.far)
    relay.set_rate(1e6)
    assert receive(pair.far, 1) == b"x"


def test_a_recording_goes_on_to_its_next_rate(pair: Pair, relay: LinkRelay) -> None:
    relay.replay(Trace(((0.2, 0.0), (3600.0, 1e6))))
    pair.near.sendall(b"x")
    assert receive(pair.far, 1) == b"x"


def test_nobody_upstream_looks_like_a_broken_connection(server: socket.socket, relay: LinkRelay) -> None:
    server.close()
    with pytest.raises(ConnectionResetError):
        connect_and_read(relay.ports[0])


def test_a_port_in_use_is_an_error_and_leaves_nothing_behind(server: socket.socket) -> None:
    taken = server.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as spare:
        free = spare.getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        LinkRelay([("127.0.0.1", 1)] * 2, listen_ports=[free, taken])
    socket.create_server(("127.0.0.1", free)).close()


def test_a_stopped_relay_says_so(server: socket.socket) -> None:
    relay = LinkRelay([server.getsockname()[:2]]).start()
    relay.stop()
    with pytest.raises(RuntimeError, match="not running"):
        relay.set_rate(1e6)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", relay.ports[0]), timeout=10)


async def test_a_relay_in_its_own_process_does_as_it_is_told(server: socket.socket, tmp_path: Path) -> None:
    link = await LinkProcess.start([server.getsockname()[:2]], tmp_path / "log", uplink_mbps=0.0)
    try:
        pair = Pair(server, link.ports[0])
        pair.near.sendall(b"x")
        assert is_silent(pair.far)
        await link.set_rate(50.0)
        assert receive(pair.far, 1) == b"x"
        await link.cut("black-hole")
        pair.far.sendall(b"y")
        assert is_silent(pair.near)
        await link.heal()
        assert receive(pair.near, 1) == b"y"
        with pytest.raises(ChildError, match="ValueError: a rate is 0 or more"):
            await link.set_rate(-1.0)
        pair.close()
        with pytest.raises(ChildError, match="in use"):
            await LinkProcess.start([("127.0.0.1", 1)], tmp_path / "log", listen_ports=link.ports)
    finally:
        await link.stop()
    assert link.child.returncode == 0, "the end of its input is a normal way to leave"


async def test_a_relay_leaves_when_its_parent_is_gone(server: socket.socket, tmp_path: Path) -> None:
    link = await LinkProcess.start([server.getsockname()[:2]], tmp_path / "log")
    assert link.child._process.stdin is not None
    link.child._process.stdin.close()
    assert await link.child.wait(timeout_s=10) == 0
    with pytest.raises(ChildError, match=r"is gone|ended"):
        await link.child.call("heal")
    await link.stop()


@pytest.mark.slow
def test_the_relay_keeps_its_own_settings(tmp_path: Path) -> None:
    assert check(["--quick", "--json", str(tmp_path / "link.json")]) == 0
