"""A replica's connection to one gateway."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import zmq

from cloud_cluster.handshakes import DialWatch
from cloud_cluster.pace import Pace
from cloud_cluster.replica_request import Done
from cloud_cluster.sockets import Inbox, try_send
from cloud_cluster.worker import Worker
from shared.errors import SutureError, UnavailableError
from shared.wire import (
    Message,
    MessageType,
    WireLimits,
    decode_message,
    encode_message,
    error_reply,
    peek,
)
from shared.wire.messages import Credit, Goodbye, Ping, ReplicaHello, Result, TailTimings

__all__ = ["GatewayLink"]

log = logging.getLogger("suture.tail")

_REFUSED_RETRY_S = 1.0
_LINGER_MS = 200


class GatewayLink:
    """The connection to one gateway: greets it, beats, and greets it again whenever it has forgotten us.

    ``work_ms`` says how much work a request is, in profiled ms.
    """

    def __init__(
        self,
        socket: zmq.Socket[Any],
        endpoint: str,
        key: str,
        hello: ReplicaHello,
        limits: WireLimits,
        worker: Worker,
        pace: Pace,
        taken_in: asyncio.Event,
        work_ms: Callable[[Message], float],
    ) -> None:
        self.endpoint = endpoint
        self.accepted = False
        self.in_hand_ms = 0.0
        self.released = asyncio.Event()
        self._socket = socket
        self._hello = hello
        self._limits = limits
        self._worker = worker
        self._pace = pace
        self._taken_in = taken_in
        self._work_ms = work_ms
        self._greeted = False
        self._reachable = False
        self.window = 0
        self._elsewhere_ms = 0.0
        self._greet_after = 0.0
        self._leaving = False
        self._refusal = ""
        self.inbox = Inbox(socket, self._on_message)
        self._watch = DialWatch(socket, endpoint, key)
        socket.connect(endpoint)

    async def failed(self) -> None:
        """Waits for ever, unless a handler fails: then raises its exception.  Safe to cancel."""
        await asyncio.gather(self.inbox.failed(), self._watch.inbox.failed())

    def send(self, frames: Sequence[Any]) -> bool:
        """False when the gateway is away; it then has given the request to another replica."""
        sent = not self._socket.closed and try_send(self._socket, frames)
        if sent:
            self.inbox.nudge()
        return sent

    @property
    def alive(self) -> bool:
        """Whether the gateway has taken this replica in and could be reached at the last heartbeat."""
        return self.accepted and self._reachable and not self._leaving

    def beat(self, credit: Credit | None, window: int, elsewhere_ms: float) -> None:
        """One heartbeat: the greeting until it is out, then a sign of life, and what is new.

        ``window`` is this gateway's share of what the replica holds, ``elsewhere_ms`` what it holds for
        the others.
        """
        if self._leaving or time.monotonic() < self._greet_after:
            return
        if not self._greeted:
            hello = msgspec.structs.replace(self._hello, credits=window)
            self._greeted = self.send(encode_message(hello))
            self.window, self._elsewhere_ms = window, 0.0
        elif credit is not None or window != self.window or elsewhere_ms != self._elsewhere_ms:
            report = msgspec.structs.replace(
                credit or Credit(credits=0, slowdown=self._pace.slowdown),
                window=window if window != self.window else None,
                elsewhere_ms=elsewhere_ms,
            )
            if self.send(encode_message(report)):
                self.window, self._elsewhere_ms = window, elsewhere_ms
        if self._greeted:
            self._reachable = self.send(encode_message(Ping()))

    def say_goodbye(self, reason: str) -> None:
        self._leaving = True
        if not self.accepted or not self.send(encode_message(Goodbye(reason=reason))):
            self.released.set()

    def close(self) -> None:
        self.inbox.close()
        self._watch.close()
        self._socket.close(linger=_LINGER_MS)

    def _on_message(self, frames: list[zmq.Frame]) -> None:
        try:
            message = decode_message([frame.buffer for frame in frames], self._limits)
        except SutureError as error:
            log.warning("from the gateway at %s: %s", self.endpoint, error)
            seen = peek(frames[0].buffer)
            if seen is not None and seen[1] == MessageType.INFER:
                # The gateway has not read the request's header, and waits for its one answer.
                self.send(encode_message(error_reply(error), request_id=seen[2]))
            return
        kind = message.type
        if kind is MessageType.INFER:
            work_ms = self._work_ms(message)
            self.in_hand_ms += work_ms
            self._worker.submit(message, partial(self._on_done, message.request_id, message.cut, work_ms))
        elif kind is MessageType.PONG:
            if self._greeted and not self.accepted:
                log.info("taken in by the gateway at %s", self.endpoint)
                self.accepted, self._refusal = True, ""
                self._taken_in.set()
        elif kind is MessageType.ERROR:
            self._on_error(message)
        elif kind is MessageType.GOODBYE:
            self.accepted = self._greeted = False
            self.released.set()

    def _on_done(self, request_id: int, cut: int, work_ms: float, done: Done) -> None:
        self._pace.on_done(done)
        self.in_hand_ms -= work_ms
        outcome = done.outcome
        if isinstance(outcome, SutureError):
            self.send(encode_message(error_reply(outcome), request_id=request_id))
            return
        timings = TailTimings(
            wait_ms=done.wait_ms,
            decode_ms=outcome.decode_ms,
            compute_ms=outcome.compute_ms,
            encode_ms=outcome.encode_ms,
            batch_requests=done.batch_requests,
            busy_ms=done.busy_ms,
        )
        result = Result(tensors=outcome.tensors, timings=timings, replica=self._hello.replica)
        self.send(encode_message(result, outcome.payloads, request_id=request_id, cut=cut))

    def _on_error(self, message: Message) -> None:
        """The gateway does not know us any more, or does not want us."""
        self.accepted = self._greeted = False
        if self._leaving:
            self.released.set()
        if message.header.code == UnavailableError.code:
            return
        self._greet_after = time.monotonic() + _REFUSED_RETRY_S
        if message.header.message != self._refusal:
            self._refusal = message.header.message
            log.error("the gateway at %s refuses this replica: %s", self.endpoint, self._refusal)
