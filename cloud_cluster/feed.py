"""The gateway's load feed: who follows it, and out to all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq

from cloud_cluster.connections import Connection
from cloud_cluster.sockets import Inbox, try_send

__all__ = ["Feed"]

# Of one key: the agent, `edge-agent plan` beside it, and what an outage has left behind of both.
_FOLLOWERS_PER_KEY = 4
# Holds for the frames of the CURVE handshake as well, of which the largest takes some 300.
_MAX_SUBSCRIPTION_BYTES = 1024


class Feed:
    """Publishes on an XPUB socket, which unlike PUB shows who subscribes.

    ``keys``: subscribers have keys, under which their connections can be cut.
    """

    def __init__(self, socket: zmq.Socket[Any], *, keys: bool) -> None:
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_SUBSCRIPTION_BYTES)
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket = socket
        self._keys = keys
        self._followers: dict[str, deque[Connection]] = {}
        self.inbox = Inbox(socket, self._on_subscription)

    def publish(self, frames: Sequence[Any]) -> None:
        """To whoever takes it: what a subscriber drops, the next report says again.

        Who subscribes from now on gets it at once; a report is one frame.
        """
        (frame,) = frames
        # In this order: who subscribes during the sending gets the one before as its welcome, not this twice.
        try_send(self._socket, frames)
        self._socket.setsockopt(zmq.XPUB_WELCOME_MSG, frame)
        self.inbox.nudge()

    def revoke(self, key: str) -> None:
        """Cut the connections of a key."""
        for connection in self._followers.pop(key, ()):
            connection.cut()

    def _on_subscription(self, frames: list[zmq.Frame]) -> None:
        connection = Connection.of(frames[0]) if self._keys and frames[0].bytes[:1] == b"\x01" else None
        if connection is None:
            return
        followers = self._followers.setdefault(str(frames[0].get("User-Id")), deque())
        followers.append(connection)
        if len(followers) > _FOLLOWERS_PER_KEY:
            followers.popleft().cut()
