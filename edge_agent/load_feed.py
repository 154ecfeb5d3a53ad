"""The load feeds of the gateways: one frame per report, of which only the newest counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import parse_monitor_message

from edge_agent.inbox import Inbox
from edge_agent.keys import HANDSHAKE_FAILURES, LinkKeys, refusal
from shared.errors import ProtocolError
from shared.wire import WireLimits, decode_message
from shared.wire.messages import LoadReport

__all__ = ["LoadFeed", "LoadFeeds", "reachable"]

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
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)
        # A subscriber sends nothing, and would never notice that the other side has vanished.
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
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


class LoadFeeds:
    """Those of all gateways, as far as they are known.

    ``on_report`` and ``on_bad`` are told the endpoint first; a feed that is none is followed no longer.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        on_report: Callable[[str, LoadReport], None],
        on_bad: Callable[[str, str], None],
        keys: LinkKeys | None = None,
    ) -> None:
        self._context = context
        self._keys = keys
        self._on_report = on_report
        self._on_bad = on_bad
        self._feeds: dict[str, LoadFeed] = {}

    @property
    def failures(self) -> list[asyncio.Future[None]]:
        return [failure for feed in self._feeds.values() for failure in feed.failures]

    def follow(self, endpoints: Iterable[str]) -> None:
        """These and no others, without a gap for those that are followed already."""
        wanted = dict.fromkeys(endpoint for endpoint in endpoints if endpoint)
        for endpoint in [each for each in self._feeds if each not in wanted]:
            self._feeds.pop(endpoint).close()
        for endpoint in wanted:
            if endpoint not in self._feeds:
                self._feeds[endpoint] = LoadFeed(
                    self._context,
                    endpoint,
                    partial(self._on_report, endpoint),
                    partial(self._drop, endpoint),
                    self._keys,
                )

    def close(self) -> None:
        self.follow(())

    def _drop(self, endpoint: str, reason: str) -> None:
        self._feeds.pop(endpoint).close()
        self._on_bad(endpoint, reason)


def reachable(endpoint: str, gateway: str) -> str:
    """A feed that is bound to every interface of the gateway is found where the gateway is."""
    for wildcard in ("//0.0.0.0:", "//*:", "//[::]:"):
        if wildcard in endpoint:
            host = urlsplit(gateway).hostname or "127.0.0.1"
            return endpoint.replace(wildcard, f"//{host}:")
    return endpoint
