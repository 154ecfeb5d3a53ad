"""Ending one peer's connection, for which ZeroMQ has no call."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from shared.errors import SutureError

__all__ = ["Connection", "Eviction"]

# Long enough for the last words to leave.
_FAREWELL_S = 0.1
# tcpi_bytes_received in struct tcp_info of linux/tcp.h, since Linux 4.1.
_RECEIVED_AT = 128
# struct linger of socket.h: closing throws away what was not sent, and resets.
_LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Connection:
    """The TCP connection that a message came over."""

    fd: int
    peer: Any

    @classmethod
    def of(cls, frame: zmq.Frame) -> Connection | None:
        """None when it is closed by now, or when this libzmq does not tell."""
        try:
            fd = int(frame.get(zmq.SRCFD))
        except zmq.ZMQError:
            return None
        return cls.at(fd)

    @classmethod
    def at(cls, fd: int) -> Connection | None:
        """None when it is closed by now."""
        with contextlib.suppress(OSError), _duplicate(fd) as connection:
            return cls(fd, connection.getpeername())
        return None

    def arrived_bytes(self) -> int | None:
        """All bytes that the kernel has received on it (Linux); None when it is closed."""
        with contextlib.suppress(OSError), _duplicate(self.fd) as connection:
            if connection.getpeername() == self.peer:
                info = connection.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _RECEIVED_AT + 8)
                return int.from_bytes(info[_RECEIVED_AT:], sys.byteorder)
        return None

    def cut(self, reset: bool = False) -> None:
        """Shut it down, so that ZeroMQ finds it closed by the peer; nothing if it is gone already.

        What was sent still arrives, unless it is ``reset``: then the peer hears of the end even where its
        own bytes fill the window, behind which it would wait for a minute otherwise.

        A descriptor is reused as soon as it is closed: by its peer's address and port it is known whether
        it still is this connection.
        """
        with contextlib.suppress(OSError), _duplicate(self.fd) as connection:
            if connection.getpeername() == self.peer:
                if reset:
                    connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _LINGER_NOT)
                connection.shutdown(sockets.SHUT_RDWR)


class Eviction:
    """Tells a peer why it must leave, once, and cuts its connection a moment later."""

    def __init__(self, tell: Callable[[bytes, SutureError], None]) -> None:
        self._tell = tell
        self._leaving: dict[bytes, asyncio.TimerHandle] = {}

    def evict(self, identity: bytes, connection: Connection | None, error: SutureError) -> None:
        if identity in self._leaving:
            return
        self._tell(identity, error)
        self._leaving[identity] = asyncio.get_running_loop().call_later(
            _FAREWELL_S, self._cut, identity, connection
        )

    def close(self) -> None:
        for handle in self._leaving.values():
            handle.cancel()
        self._leaving.clear()

    def _cut(self, identity: bytes, connection: Connection | None) -> None:
        del self._leaving[identity]
        if connection is not None:
            connection.cut()


@contextlib.contextmanager
def _duplicate(fd: int) -> Any:
    """The descriptor as a socket of Python's, whose closing leaves ZeroMQ's open."""
    duplicate = os.dup(fd)
    try:
        connection = sockets.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise
    with connection:
        yield connection
