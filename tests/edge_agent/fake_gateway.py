"""A gateway of a few lines, for the link's tests: it does what a test lets it do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import zmq

from edge_agent.inbox import Inbox
from shared.wire import Buffer, Message, MessageType, WireLimits, decode_message, encode_message
from shared.wire.messages import Card, Header, Limits, ModelCard, Ping, Pong

__all__ = ["FakeGateway", "eventually"]

PATIENCE_S = 20


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - any condition, not only an event
            await asyncio.sleep(0.005)


class FakeGateway:
    """Answers HELLO with ``card`` and PING with PONG while ``alive``; keeps every message in ``got``."""

    def __init__(self) -> None:
        self.alive = True
        self.card: Card | None = Card(
            gateway="fake",
            software="test",
            limits=Limits(),
            models=[ModelCard(name="net", digest="sha256:1", index=3, unit_ms=[1.0], replicas=1)],
        )
        self.got: list[Message] = []
        self.device = b""
        self.on_infer: Callable[[Message], None] = lambda message: None
        self.endpoint = "tcp://127.0.0.1:*"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeGateway]:
        """Bound to its endpoint; leaving closes the port, entering again takes the same one."""
        context = zmq.Context()
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(self.endpoint)
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.inbox = Inbox(self.socket, self._on_frames)
        try:
            yield self
        finally:
            self.inbox.close()
            self.socket.close()
            context.term()

    def of(self, kind: MessageType) -> list[Message]:
        return [message for message in self.got if message.type is kind]

    def send(self, header: Header, payloads: tuple[Buffer, ...] = (), request_id: int = 0) -> None:
        self.send_raw(encode_message(header, payloads, request_id=request_id))

    def send_raw(self, frames: list[Buffer]) -> None:
        self.socket.send_multipart([self.device, *frames])
        self.inbox.look_again()

    def _on_frames(self, frames: list[memoryview]) -> None:
        device, *rest = (bytes(frame) for frame in frames)
        message = decode_message(rest, WireLimits())
        self.got.append(message)
        if not self.alive:
            return
        self.device = device
        if message.type is MessageType.HELLO and self.card is not None:
            self.send(self.card, request_id=message.request_id)
        elif isinstance(message.header, Ping):
            probe = message.header.probe_bytes
            pong = Pong(span_ms=8.0, span_bytes=probe) if probe else Pong()
            self.send(pong, request_id=message.request_id)
        elif message.type is MessageType.INFER:
            self.on_infer(message)
