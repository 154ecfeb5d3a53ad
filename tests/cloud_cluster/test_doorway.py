"""The doorway over real connections, whose descriptors are reused."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import zmq

from cloud_cluster.doorway import Doorway
from cloud_cluster.parking import Parking

_LATER_MS = 1e15


class _Frame:
    """As much of a ZeroMQ frame as says which connection it came over."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def get(self, option: int) -> int:
        assert option == zmq.SRCFD
        return self._fd


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def _connected(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(listener.getsockname())
    return client, listener.accept()[0]


def test_a_device_keeps_the_descriptor_of_one_that_left_unnoticed(listener: socket.socket) -> None:
    parking = Parking(2**20, max_strangers=8, max_parked_bytes=2**30)
    doorway = Doorway(parking, "devices")
    first, ours = _connected(listener)
    fd = ours.fileno()
    doorway.on_accepted(fd)
    doorway.on_greeted(b"first", _Frame(fd))  # type: ignore[arg-type]
    # The second connects before the first one's end frees its port, so that the two differ.
    second = socket.create_connection(listener.getsockname())
    ours.close()
    ours = listener.accept()[0]
    assert ours.fileno() == fd
    doorway.on_greeted(b"second", _Frame(fd))  # type: ignore[arg-type]
    doorway.on_accepted(fd)  # the event comes after what it let in
    doorway.on_parted(b"first")
    assert parking.look(_LATER_MS, lambda _: 0) == []
    doorway.on_parted(b"second")
    assert [each for each, _ in parking.look(_LATER_MS, lambda _: 0)] == [fd]
    for each in (first, second, ours):
        each.close()
