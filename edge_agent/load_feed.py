"""The gateway's load feed: one frame per report, of which only the newest counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import parse_monitor_message

from edge_agent.inbox import Inbox
from edge_agent.keys import HANDSHAKE_FAILURES, LinkKeys, refusal
from shared.errors import ProtocolError
from shared.wire import WireLimits, decode_message
from shared.wire.messages import LoadReport

__all__ = ["LoadFeed", "reachable"]

_LIMITS = WireLimits(max_message_bytes=2**20)


class LoadFeed:
    """Subscribed from the start until closed.

    ``on_bad`` is told of what is no message at all, and of a feed that does not let this device in.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        on_report: Callable[[LoadReport], None],
        on_bad: Callable[[str], None],
        keys: LinkKeys | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._on_report = on_report
        self._on_bad = on_bad
        self._keys = keys
        self._failures = 0
        self._socket = context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.CONFLATE, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _LIMITS.max_message_bytes)
        self._socket.subscribe(b"")
        if keys is not None:
            keys.apply(self._socket)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | HANDSHAKE_FAILURES)
        self._monitor_inbox = Inbox(self._monitor, self._on_monitor)
        self._inbox = Inbox(self._socket, self._on_frames)
        self._socket.connect(endpoint)

    @property
    def failures(self) -> tuple[asyncio.Future[None], ...]:
        """Raise what a handler raised; cancelled once closed."""
        return self._inbox.failure, self._monitor_inbox.failure

    def close(self) -> None:
        self._inbox.close()
        self._monitor_inbox.close()
        self._socket.disable_monitor()  # first: ZeroMQ blocks on an event that nobody can take
        self._monitor.close(linger=0)
        self._socket.close()

    def _on_monitor(self, frames: list[memoryview]) -> None:
        message = parse_monitor_message([bytes(frame) for frame in frames])
        event = message["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failures = 0
            return
        self._failures += 1
        # A gateway that ends just then looks like one that refuses; ZeroMQ dials again by itself.
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH or self._failures > 1:
            _, why = refusal(self.endpoint, event, int(message["value"]), self._keys)
            self._on_bad(f"the load feed at {why}")

    def _on_frames(self, frames: list[memoryview]) -> None:
        try:
            header = decode_message(frames, _LIMITS).header
        except ProtocolError as error:
            self._on_bad(f"{self.endpoint} is no load feed: {error}")
            return
        if isinstance(header, LoadReport):
            self._on_report(header)


def reachable(endpoint: str, gateway: str) -> str:
    """A feed that is bound to every interface of the gateway is found where the gateway is."""
    for wildcard in ("//0.0.0.0:", "//*:", "//[::]:"):
        if wildcard in endpoint:
            host = urlsplit(gateway).hostname or "127.0.0.1"
            return endpoint.replace(wildcard, f"//{host}:")
    return endpoint
