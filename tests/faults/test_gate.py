"""The gate does what its faults are called: with plain sockets at both ends."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.child import Child, ChildError
from bench.gate import FAULTS, Gate, Towards

PATIENCE_S = 20.0


class Ends:
    """The two ends of one connection through a gate."""

    def __init__(self, server: socket.socket, port: int) -> None:
        self.device = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.gateway, _ = server.accept()
        self.gateway.settimeout(PATIENCE_S)

    def close(self) -> None:
        self.device.close()
        self.gateway.close()

    def of(self, name: Towards) -> socket.socket:
        return self.device if name == "device" else self.gateway

    def other(self, name: Towards) -> socket.socket:
        return self.gateway if name == "device" else self.device


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE_S)
        yield listening


@pytest.fixture
def gate(server: socket.socket) -> Iterator[Gate]:
    with Gate([server.getsockname()[:2]]) as running:
        yield running


@pytest.fixture
def ends(server: socket.socket, gate: Gate) -> Iterator[Ends]:
    both = Ends(server, gate.ports[0])
    yield both
    both.close()


def receive(sock: socket.socket, size: int) -> bytes:
    """Up to ``size`` bytes: fewer where the connection ends before."""
    data = bytearray()
    while len(data) < size:
        try:
            piece = sock.recv(size - len(data))
        except ConnectionResetError:
            break
        if not piece:
            break
        data += piece
    return bytes(data)


def is_silent(sock: socket.socket) -> bool:
    sock.settimeout(0.15)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(PATIENCE_S)
    return False


def exchange(server: socket.socket, gate: Gate) -> None:
    """A new connection carries both ways."""
    both = Ends(server, gate.ports[0])
    both.device.sendall(b"ping")
    assert receive(both.gateway, 4) == b"ping"
    both.gateway.sendall(b"pong")
    assert receive(both.device, 4) == b"pong"
    both.close()


def test_refused_and_healed_at_the_same_port(server: socket.socket, gate: Gate, ends: Ends) -> None:
    gate.refuse()
    assert receive(ends.device, 1) == receive(ends.gateway, 1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", gate.ports[0]), timeout=PATIENCE_S)
    gate.heal()
    exchange(server, gate)


def test_a_black_hole_tells_nobody_and_gives_back_what_it_held(gate: Gate, ends: Ends) -> None:
    gate.blackhole()
    ends.device.sendall(b"hello")
    assert is_silent(ends.gateway)
    assert is_silent(ends.device)
    gate.heal()
    assert receive(ends.gateway, 5) == b"hello"


def test_a_reset_breaks_what_is_there_and_takes_what_comes(
    server: socket.socket, gate: Gate, ends: Ends
) -> None:
    gate.reset()
    assert receive(ends.device, 1) == receive(ends.gateway, 1) == b""
    exchange(server, gate)


@pytest.mark.parametrize("towards", ["device", "gateway"])
def test_half_closed_one_way_ends_and_the_other_goes_on(gate: Gate, ends: Ends, towards: Towards) -> None:
    gate.half_close(towards)
    assert receive(ends.of(towards), 1) == b""
    ends.of(towards).sendall(b"still here")
    assert receive(ends.other(towards), 10) == b"still here"


@pytest.mark.parametrize("towards", ["device", "gateway"])
def test_half_open_one_end_is_gone_and_the_other_is_not_told(
    server: socket.socket, gate: Gate, ends: Ends, towards: Towards
) -> None:
    gate.half_open(towards)
    assert receive(ends.of(towards), 1) == b""
    ends.other(towards).sendall(b"anybody?")
    assert is_silent(ends.other(towards))
    exchange(server, gate)


def test_slices_arrive_whole_and_one_by_one(gate: Gate, ends: Ends) -> None:
    sent = bytes(range(256)) * 8
    gate.slice(1)
    ends.device.sendall(sent)
    assert receive(ends.gateway, len(sent)) == sent


@pytest.mark.parametrize("seed", [1, 2])
def test_corruption_flips_single_bits_here_and_there(gate: Gate, ends: Ends, seed: int) -> None:
    gate.corrupt(every_bytes=100.0, seed=seed)
    ends.device.sendall(bytes(10_000))
    arrived = receive(ends.gateway, 10_000)
    changed = [byte for byte in arrived if byte]
    assert len(arrived) == 10_000
    assert all(byte.bit_count() == 1 for byte in changed)
    assert 50 < len(changed) < 200
    gate.heal()
    ends.device.sendall(bytes(1_000))
    assert receive(ends.gateway, 1_000) == bytes(1_000)


@pytest.mark.parametrize("towards", ["device", "gateway"])
@pytest.mark.parametrize("nbytes", [0, 1, 1000])
def test_dropped_after_so_many_bytes(
    server: socket.socket, gate: Gate, ends: Ends, towards: Towards, nbytes: int
) -> None:
    gate.drop_after(nbytes, towards)
    ends.other(towards).sendall(bytes(500) * 4)
    assert len(receive(ends.of(towards), 2000)) == nbytes
    assert receive(ends.other(towards), 1) == b""
    exchange(server, gate)


def test_healing_ends_the_limits_too(gate: Gate, ends: Ends) -> None:
    gate.rate(8.0)
    gate.latency(3600.0)
    ends.device.sendall(bytes(100_000))
    assert is_silent(ends.gateway)
    gate.heal()
    ends.gateway.sendall(b"now")
    assert receive(ends.device, 3) == b"now"


async def test_in_a_process_of_its_own(server: socket.socket, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench.gate", f'[["127.0.0.1", {server.getsockname()[1]}]]']
    child = await Child.start("the gate", argv, tmp_path / "gate.log")
    try:
        (port,) = (await child.ready())["ports"]
        both = Ends(server, port)
        await child.call("drop_after", nbytes=3)
        both.device.sendall(b"abcdef")
        assert receive(both.gateway, 6) == b"abc"
        both.close()
        await child.call("heal")
        with pytest.raises(ChildError, match="no command"):
            await child.call("explode")
    finally:
        await child.stop()
    assert set(FAULTS) <= set(dir(Gate))
