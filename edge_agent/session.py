"""One session with a gateway: a socket from its first dial to the outage that ends it.

HELLO, CARD, then work.  Every outage ends the session and with it the socket, so nothing that was queued
before an outage is delivered after it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol

import zmq
from msgspec import UNSET
from zmq.utils.monitor import parse_monitor_message

from edge_agent.estimate import MIN_SPAN_BYTES
from edge_agent.inbox import Inbox, send_now
from edge_agent.keys import HANDSHAKE_FAILURES, LinkKeys, refusal
from edge_agent.listener import LinkListener, LinkState
from edge_agent.load_feed import LoadFeeds, reachable
from edge_agent.silence import Silence
from shared.config import CloudLinkConfig
from shared.errors import AuthError, ProtocolError, SutureError, UnavailableError
from shared.wire import Buffer, WireLimits, decode_message, encode_message, error_from_reply
from shared.wire.messages import Announce, Card, Goodbye, Hello, LoadReport, MessageType, Ping, Pong

__all__ = ["Session", "now_ms"]

log = logging.getLogger("suture.agent")

_FIRST_CONTROL_ID = 2**63
"""Request ids from here on belong to hellos and heartbeats."""

_UNANNOUNCED_MS = 1.0
_SEND_HIGH_WATER = 64
_GOODBYE_MS = 100
"""How long the end of a session waits for its last word to leave."""

_CARD_TIMEOUTS = 4
"""A gateway that does not answer HELLO within this many heartbeat timeouts is dialled anew."""


def now_ms() -> float:
    return asyncio.get_running_loop().time() * 1000.0


class Cluster(Protocol):
    """What a session tells those who choose between gateways."""

    def enter(self, state: LinkState, reason: str) -> None: ...

    def on_card(self, card: Card) -> None:
        """Before the listener is told."""

    def on_feed(self, feed: str) -> None:
        """There was a report on this load feed."""


class Session:
    """One socket's life.  ``cluster`` is told of every change of state as it happens.

    The session ends when the gateway has not answered HELLO within ``patience_ms``.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        config: CloudLinkConfig,
        endpoint: str,
        hello: Hello,
        listener: LinkListener,
        cluster: Cluster,
        limits: WireLimits,
        keys: LinkKeys | None = None,
        *,
        patience_ms: float = math.inf,
    ) -> None:
        self.endpoint = endpoint
        self._config = config
        self._keys = keys
        self._hello = hello
        self._listener = listener
        self._cluster = cluster
        self._limits = limits
        self._context = context
        self._ended: asyncio.Future[tuple[LinkState, str]] = asyncio.get_running_loop().create_future()
        self._was_online = False
        self._hello_id = _FIRST_CONTROL_ID
        self._next_id = _FIRST_CONTROL_ID + 1
        self._wanted: set[int] = set()
        self._shaken = False
        self._linger_ms = 0
        self._hello_sent_ms: float | None = None
        self.began_ms = self._beat_ms = now_ms()
        self._card_due_ms = self._beat_ms + patience_ms
        self.silence = Silence(config.heartbeat_ms, config.heartbeat_timeout_ms, self._beat_ms)

        self._socket = context.socket(zmq.DEALER)
        _set_up(self._socket, config, endpoint, limits)
        if keys is not None:
            keys.apply(self._socket)
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | HANDSHAKE_FAILURES
            | zmq.EVENT_CONNECT_RETRIED
            | zmq.EVENT_DISCONNECTED
        )
        self._monitor_inbox = Inbox(self._monitor, self._on_monitor)
        self._inbox = Inbox(self._socket, self._on_frames)
        self._gateway = ""
        self._own_feed = ""
        self._feeds = LoadFeeds(context, self._on_load, self._on_bad_feed, keys)
        self._socket.connect(endpoint)

    async def run(self) -> tuple[bool, LinkState, str]:
        """Until the session ends: whether it ever was online, and why it ended."""
        while not self._ended.done():
            watched: list[asyncio.Future[Any]] = [
                self._ended,
                self._inbox.failure,
                self._monitor_inbox.failure,
                *self._feeds.failures,
            ]
            timeout_s = max(min(self._beat_ms, self.silence.lost_ms()) - now_ms(), 0.0) / 1000.0
            done, _ = await asyncio.wait(watched, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                if not future.cancelled():
                    future.result()  # raises what a handler raised
            if not done:
                self._on_time(now_ms())
        state, reason = self._ended.result()
        return self._was_online, state, reason

    def close(self) -> None:
        for inbox in (self._inbox, self._monitor_inbox):
            inbox.close()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=self._linger_ms)
        self._feeds.close()

    def send(self, header: Any, payloads: Sequence[Buffer] = (), request_id: int = 0) -> bool:
        sent = send_now(self._socket, encode_message(header, payloads, request_id=request_id))
        self._inbox.look_again()
        return sent

    def say_goodbye(self, reason: str) -> None:
        """Tell the gateway that the device leaves; to be closed next."""
        if self.send(Goodbye(reason=reason)):
            self._linger_ms = _GOODBYE_MS

    def send_work(
        self,
        request_id: int,
        frames: Sequence[Buffer],
        payloads: Sequence[Buffer],
        result_bytes: int,
        budget_ms: float,
    ) -> bool:
        payload_bytes = sum(memoryview(payload).nbytes for payload in payloads)
        sent = not self._tells_by_its_span(payload_bytes) or self._announce(payload_bytes, request_id)
        sent = sent and send_now(self._socket, frames)
        self._inbox.look_again()
        if sent:
            self.silence.work_sent(request_id, payload_bytes, result_bytes, now_ms() + budget_ms)
        return sent

    def _announce(self, payload_bytes: int, request_id: int) -> bool:
        return send_now(
            self._socket, encode_message(Announce(payload_bytes=payload_bytes), request_id=request_id)
        )

    def _tells_by_its_span(self, payload_bytes: int) -> bool:
        """Whether the uplink is measured by it, or its time there is worth taking off the budget.

        One message less is a tenth of the time of a small request on a fast link.
        """
        expected_ms = payload_bytes * 8000.0 / max(self._listener.uplink_bps(), 1.0)
        return payload_bytes >= MIN_SPAN_BYTES or expected_ms >= _UNANNOUNCED_MS

    def want(self, index: int) -> None:
        """Tell the gateway with the next heartbeat that this network lacked a replica."""
        self._wanted.add(index)

    def send_ping(self, probe_bytes: int) -> bool:
        request_id, self._next_id = self._next_id, self._next_id + 1
        if probe_bytes and not self.send(Announce(payload_bytes=probe_bytes), request_id=request_id):
            return False
        padding = (bytes(probe_bytes),) if probe_bytes else ()
        wanted = sorted(self._wanted) or UNSET
        if not self.send(Ping(probe_bytes=probe_bytes, wanted=wanted), padding, request_id):
            return False
        self._wanted.clear()
        self.silence.ping_sent(request_id, probe_bytes, now_ms(), self._listener.uplink_bps())
        return True

    # time

    def _on_time(self, now: float) -> None:
        if now >= self.silence.lost_ms():
            silent_ms = now - self.silence.heard_ms
            self._end(LinkState.OFFLINE, f"nothing heard from {self.endpoint} for {silent_ms:.0f} ms")
            return
        if now < self._beat_ms:
            return
        self._beat_ms = now + self._config.heartbeat_ms
        if self._hello_sent_ms is None:
            if now >= self._card_due_ms:
                self._end(LinkState.OFFLINE, f"nothing answers at {self.endpoint}")
            elif self._shaken:
                self._say_hello()
            return  # else not connected, and ZeroMQ goes on dialling
        if not self._was_online:
            patience_ms = _CARD_TIMEOUTS * max(self._config.heartbeat_timeout_ms, self._config.heartbeat_ms)
            if now > min(self._hello_sent_ms + patience_ms, self._card_due_ms):
                self._end(LinkState.OFFLINE, f"{self.endpoint} connects but does not answer HELLO")
            return
        # A probe behind a payload would measure the payload.
        wanted = 0 if self.silence.unconfirmed_bytes else self._listener.probe_bytes()
        if self.send_ping(wanted) and wanted:
            self._listener.on_probe_sent(wanted)

    def _say_hello(self) -> None:
        if self.send(self._hello, request_id=self._hello_id):
            self._hello_sent_ms = now_ms()

    def _end(self, state: LinkState, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result((state, reason))
            # At once, not when the task gets its turn: requests in flight are waiting for this.
            self._cluster.enter(state, reason)

    # events

    def _on_monitor(self, frames: list[memoryview]) -> None:
        message = parse_monitor_message([bytes(frame) for frame in frames])
        event = message["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._shaken = True
            self._say_hello()
        elif event == zmq.EVENT_CONNECT_RETRIED:
            self._end(LinkState.OFFLINE, f"nothing answers at {self.endpoint}")
        elif event == zmq.EVENT_DISCONNECTED:
            self._end(LinkState.OFFLINE, f"{self.endpoint} closed the connection")
        else:
            self._end(*refusal(self.endpoint, event, int(message["value"]), self._keys))

    def _on_frames(self, frames: list[memoryview]) -> None:
        self.silence.heard_ms = now_ms()
        if self._ended.done():
            return
        try:
            message = decode_message(frames, self._limits)
        except ProtocolError as error:
            self._end(LinkState.REFUSED, f"{self.endpoint} sent what is no message: {error}")
            return
        request_id = message.request_id
        if message.type is MessageType.PONG:
            self._on_pong(request_id, message.header)
        elif message.type is MessageType.RESULT:
            self.silence.answered(request_id)
            if message.header.span_ms > 0:
                self._listener.on_span(message.header.span_bytes, message.header.span_ms)
            self._listener.on_answer(message)
        elif message.type is MessageType.ERROR:
            self._on_error(request_id, error_from_reply(message.header))
        elif message.type is MessageType.CARD:
            self._on_card(message.header)
        elif message.type is MessageType.GOODBYE:
            self._end(LinkState.OFFLINE, f"the gateway says goodbye: {message.header.reason or 'no reason'}")
        else:
            self._end(
                LinkState.REFUSED,
                f"{self.endpoint} sent {message.type.name}, which is not for devices",
            )

    def _on_pong(self, request_id: int, pong: Pong) -> None:
        rtt_ms = self.silence.ponged(request_id)
        if rtt_ms is not None:
            self._listener.on_rtt(rtt_ms)
        if pong.span_ms > 0:
            self._listener.on_span(pong.span_bytes, pong.span_ms)

    def _on_error(self, request_id: int, error: SutureError) -> None:
        if isinstance(error, AuthError):
            self._end(LinkState.REFUSED, f"{self.endpoint} refuses this agent: {error}")
        elif request_id < _FIRST_CONTROL_ID and self._was_online:
            self.silence.answered(request_id)
            self._listener.on_refusal(request_id, error)
        else:
            lost = isinstance(error, UnavailableError)  # a gateway that has started anew
            state = LinkState.OFFLINE if lost else LinkState.REFUSED
            self._end(state, f"{self.endpoint} does not know this agent: {error}")

    def _on_card(self, card: Card) -> None:
        if not self._was_online and self._hello_sent_ms is not None:
            # Until a heartbeat has measured it.
            self.silence.rtt_ms = self.silence.heard_ms - self._hello_sent_ms
        self._gateway = card.gateway
        self._follow(card)
        self._was_online = True
        self._cluster.on_card(card)
        self._cluster.enter(LinkState.ONLINE, f"{card.gateway} at {self.endpoint}")
        self._listener.on_card(card)

    def _follow(self, card: Card) -> None:
        """Subscribe to the load feeds of this gateway and of all others, or to those of the configuration."""
        feeds = self._config.load_feeds or [
            reachable(feed, self.endpoint) for feed in (card.load_endpoint, *card.load_endpoints)
        ]
        self._own_feed = feeds[0]
        self._feeds.follow(feeds)

    def _on_load(self, feed: str, report: LoadReport) -> None:
        if report.gateway == self._gateway:
            self.silence.feed_heard(now_ms())
        self._cluster.on_feed(feed)
        self._listener.on_load(report)

    def _on_bad_feed(self, feed: str, reason: str) -> None:
        if feed == self._own_feed:
            self._end(LinkState.REFUSED, reason)
        else:
            log.warning("%s; what it would say of the load is not known", reason)


def _set_up(socket: zmq.Socket[Any], config: CloudLinkConfig, endpoint: str, limits: WireLimits) -> None:
    socket.setsockopt(zmq.IPV6, "[" in endpoint)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # queue nothing for a gateway that is not there
    socket.setsockopt(zmq.SNDHWM, _SEND_HIGH_WATER)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.max_message_bytes)
    socket.setsockopt(zmq.RECONNECT_IVL, round(config.reconnect_min_ms))
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, round(config.reconnect_max_ms))
    socket.setsockopt(zmq.CONNECT_TIMEOUT, round(max(config.reconnect_max_ms, 1000.0)))
    socket.setsockopt(zmq.HANDSHAKE_IVL, round(max(config.reconnect_max_ms, 1000.0)))
    # ZeroMQ's own heartbeats queue behind a large payload and know nothing of its size.  They are only
    # the last resort; those of the session, which know, are much faster.
    socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10_000)
