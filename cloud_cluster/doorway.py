"""Who may go on sending at one port: strikes for what is no message, and an eye on what ZeroMQ holds.

The verdicts are those of :mod:`cloud_cluster.strikes` and :mod:`cloud_cluster.parking`; the bytes of a
connection are the kernel's (``TCP_INFO``, Linux).  Elsewhere connections are not watched.
"""

from __future__ import annotations

import asyncio
import logging
import socket as sockets
import time

import zmq

from cloud_cluster.connections import Connection
from cloud_cluster.parking import Parking
from cloud_cluster.strikes import Strikes
from shared.errors import ProtocolError

__all__ = ["Doorway"]

log = logging.getLogger("suture.gateway")

_LOOK_S = 0.1


class Doorway:
    """Of one bound socket.  ``purpose`` names its port in the log."""

    def __init__(self, parking: Parking, purpose: str, strikes: Strikes | None = None) -> None:
        self.closed = 0
        """Connections closed for what they held, or for not greeting."""
        self._parking = parking
        self._purpose = purpose
        self._strikes = strikes or Strikes()
        self._connections: dict[int, Connection] = {}
        self._of_peer: dict[bytes, tuple[int, int]] = {}
        self._watches = hasattr(sockets, "TCP_INFO")
        if not self._watches:
            log.warning("this system does not count a connection's bytes: %s are not watched", purpose)

    def on_accepted(self, fd: int) -> None:
        """There may be a new connection at this descriptor, or one that was heard already."""
        connection = Connection.at(fd) if self._watches else None
        if connection is not None and connection != self._connections.get(fd):
            self._connections[fd] = connection
            self._parking.accepted(fd, _now_ms())

    def lets_in(self, peer: bytes, frame: zmq.Frame, now_ms: float) -> bool:
        """Take note of a whole message, of which this is a frame; False when it is to be dropped unread."""
        if self._watches:
            fd = _fd_of(frame)
            if fd not in self._connections:
                self.on_accepted(fd)  # it was, before anybody watched
            self._parking.heard(fd)
        return not self._strikes.is_out(peer, now_ms)

    def strike(self, peer: bytes, now_ms: float) -> ProtocolError | None:
        """Count a message that is none; what to tell the peer when that was one too many."""
        if not self._strikes.strike(peer, now_ms):
            return None
        return ProtocolError(
            f"{self._strikes.limit} messages within {self._strikes.window_ms / 1e3:g} s were none of this "
            f"protocol; nothing more is read from here for {self._strikes.ban_ms / 1e3:g} s: "
            "look for a defect or for another version of the sender"
        )

    def on_greeted(self, identity: bytes, frame: zmq.Frame) -> None:
        """The message that this frame is of made its sender one of ours."""
        self.on_parted(identity)  # from where it greeted before
        fd = _fd_of(frame)
        self.on_accepted(fd)  # the one before it at this descriptor may not be missed yet
        number = self._parking.greeted(fd)
        if number is not None:
            self._of_peer[identity] = fd, number

    def on_parted(self, identity: bytes) -> None:
        """It is not one of ours any more."""
        greeted = self._of_peer.pop(identity, None)
        if greeted is not None:
            self._parking.parted(*greeted, _now_ms())

    async def run(self) -> None:
        """Look and close, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for fd, why in self._parking.look(_now_ms(), self._arrived):
                connection = self._connections.pop(fd)
                self.closed += 1
                log.warning("closing a connection of %s from %s: %s", self._purpose, connection.peer, why)
                connection.cut(reset=True)

    def _arrived(self, fd: int) -> int | None:
        arrived = self._connections[fd].arrived_bytes()
        if arrived is None:
            del self._connections[fd]
        return arrived


def _fd_of(frame: zmq.Frame) -> int:
    """-1 where libzmq does not tell."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1


def _now_ms() -> float:
    return time.monotonic() * 1e3
