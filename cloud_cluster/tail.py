"""A replica: holds one whole network, takes work from every gateway by credit, runs the units above the cut.

The event loop keeps receiving while one thread computes, so that with two credits the next request is
already here when the thread is free.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zmq

from cloud_cluster.executor import BatchExecutor, Executor, load_executor
from cloud_cluster.handshakes import DialWatch
from cloud_cluster.keys import ReplicaKeys
from cloud_cluster.loops import Loops
from cloud_cluster.schedule import Done
from cloud_cluster.sockets import Inbox, try_send
from cloud_cluster.worker import Worker
from shared.config import GatewayKeysConfig, ServedModelConfig
from shared.errors import SutureError, UnavailableError
from shared.wire import (
    Message,
    MessageType,
    WireLimits,
    decode_message,
    encode_message,
    error_reply,
)
from shared.wire.messages import Credit, Goodbye, Ping, ReplicaHello, Result, TailTimings

__all__ = ["Tail"]

log = logging.getLogger("suture.tail")

_SLOWDOWN_WEIGHT = 0.2
# Shorter computations say more about the scheduler than about the replica.
_SLOWDOWN_MIN_MS = 0.2
# What was slow then need not be slow now, and without requests nothing else would say so.
_SLOWDOWN_MEMORY_S = 5.0
_REFUSED_RETRY_S = 1.0
_LINGER_MS = 200


class Tail:
    """One replica of ``model``.  ``gateways`` are the replica endpoints of all gateways known so far;
    :meth:`set_gateways` tells of others.

    :meth:`start` loads and profiles the network, which takes seconds; with an ``executor`` it uses that
    one instead.  :meth:`run` works until stopped, outlives any gateway, and raises on a defect.
    :meth:`stop` drains.  All three belong to one event loop.

    ``keys`` are those of the gateways.  Raises ConfigError when their files cannot be read here.
    """

    def __init__(
        self,
        model: ServedModelConfig,
        gateways: Sequence[str],
        *,
        executor: Executor | BatchExecutor | None = None,
        cache_dir: Path | None = None,
        profile_repeats: int = 10,
        heartbeat_ms: float = 100.0,
        heartbeat_timeout_ms: float = 300.0,
        max_message_bytes: int = 32 * 2**20,
        keys: GatewayKeysConfig | None = None,
    ) -> None:
        self.model = model
        self._keys = ReplicaKeys.load(keys) if keys is not None else None
        self.replica = f"{model.name[:96]}/{secrets.token_hex(4)}"
        self._endpoints = list(gateways)
        self._make_executor: Callable[[], Executor | BatchExecutor] = (
            partial(load_executor, model, cache_dir, profile_repeats)
            if executor is None
            else (lambda: executor)
        )
        self._heartbeat_ms = heartbeat_ms
        self._heartbeat_timeout_ms = heartbeat_timeout_ms
        self._wire_limits = WireLimits(max_message_bytes=max_message_bytes)
        self._context: zmq.Context[Any] | None = None
        self._hello: ReplicaHello | None = None
        self._links: list[_GatewayLink] = []
        self._worker: Worker | None = None
        self._pace = _Pace()
        self._taken_in = asyncio.Event()
        self._loops = Loops()

    async def start(self) -> None:
        """Load, profile, connect.  Raises what :func:`cloud_cluster.executor.load_executor` raises."""
        worker = self._worker = Worker(self._make_executor, f"{self.replica} worker")
        executor = await worker.start()
        self._context = zmq.Context()
        self._hello = ReplicaHello(
            replica=self.replica,
            model=self.model.name,
            digest=executor.digest,
            unit_ms=list(executor.unit_ms),
            credits=self.model.credits,
            software=f"suture {version('suture')}",
            version=self.model.version,
        )
        self.set_gateways(self._endpoints)
        log.info("%s holds %s, %.1f ms for the whole", self.replica, executor.digest, sum(executor.unit_ms))

    def set_gateways(self, endpoints: Sequence[str]) -> None:
        """The replica endpoints of all gateways there are now: connect to the new ones, leave the others.

        Before the start they are only noted.
        """
        self._endpoints = list(endpoints)
        if self._hello is None or self._context is None:
            return
        for link in [link for link in self._links if link.endpoint not in endpoints]:
            log.info("%s leaves the gateway at %s, which is gone", self.replica, link.endpoint)
            self._links.remove(link)
            self._loops.remove(self._inbox_name(link))
            link.say_goodbye("this gateway counts as gone")
            link.close()
        for endpoint in dict.fromkeys(endpoints):
            if all(link.endpoint != endpoint for link in self._links):
                self._join(self._context, endpoint, self._hello)

    def _join(self, context: zmq.Context[Any], endpoint: str, hello: ReplicaHello) -> None:
        assert self._worker is not None
        link = _GatewayLink(
            self._socket(context, endpoint),
            endpoint,
            self._keys.pair.public if self._keys is not None else "",
            hello,
            self._wire_limits,
            self._worker,
            self._pace,
            self._taken_in,
        )
        self._links.append(link)
        if self._loops.running:
            self._loops.add(self._inbox_name(link), link.failed())

    def _inbox_name(self, link: _GatewayLink) -> str:
        return f"{self.replica} inbox {link.endpoint}"

    @property
    def work_done(self) -> tuple[float, int]:
        """Milliseconds that the replica was busy, and requests that it has finished, since its start."""
        return self._pace.busy_total_ms, self._pace.finished

    @property
    def ready(self) -> bool:
        """Whether a gateway has taken this replica in."""
        return any(link.accepted for link in self._links)

    async def wait_ready(self) -> None:
        """Wait until a gateway has taken this replica in; safe to cancel.  While :meth:`run` runs."""
        await self._taken_in.wait()

    async def run(self) -> None:
        """Work until stopped or cancelled; raises what a defect raised.  After :meth:`start`."""
        if self._worker is None:
            raise RuntimeError("start the tail before running it")
        try:
            await self._loops.run(
                {
                    f"{self.replica} worker": self._worker.failed(),
                    f"{self.replica} heartbeat": self._beat(),
                    **{self._inbox_name(link): link.failed() for link in self._links},
                }
            )
        except ExceptionGroup:
            # The gateways see the connection break, and give the work to others at once.
            for link in self._links:
                link.close()
            raise

    async def stop(self, drain_s: float = 5.0) -> None:
        """Say goodbye, answer what is here and what is on its way, and leave after ``drain_s`` at most."""
        # No more gateways are joined from here on.
        self._hello = None
        for link in self._links:
            link.say_goodbye("the replica stops")
        try:
            async with asyncio.timeout(drain_s):
                for link in self._links:
                    await link.released.wait()
        except TimeoutError:
            log.warning("%s leaves although a gateway has not released it", self.replica)
        await self._loops.stop()
        for link in self._links:
            link.close()
        if self._worker is not None:
            await self._worker.stop()
        if self._context is not None:
            await asyncio.to_thread(self._context.term)

    def _socket(self, context: zmq.Context[Any], endpoint: str) -> zmq.Socket[Any]:
        socket: zmq.Socket[Any] = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, self.replica.encode())
        # Work is sent over a connection that is there, or not at all: the gateway gives it to another.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, int(self._heartbeat_ms))
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, int(self._heartbeat_ms))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(self._heartbeat_timeout_ms))
        socket.setsockopt(zmq.MAXMSGSIZE, self._wire_limits.max_message_bytes)
        if "[" in endpoint:
            socket.setsockopt(zmq.IPV6, 1)
        if self._keys is not None:
            self._keys.apply(socket)
        return socket

    async def _beat(self) -> None:
        while True:
            credit = self._pace.take()
            for link in self._links:
                link.beat(credit)
            await asyncio.sleep(self._heartbeat_ms / 1e3)


class _Pace:
    """How busy and how slow the replica is, between two reports."""

    def __init__(self) -> None:
        self._slowdown = 1.0
        self._busy_ms = 0.0
        self._since = time.monotonic()
        self.busy_total_ms = 0.0
        self.finished = 0

    def on_done(self, done: Done) -> None:
        self._busy_ms += done.busy_ms
        self.busy_total_ms += done.busy_ms
        self.finished += 1
        if isinstance(done.outcome, SutureError) or done.outcome.expected_ms < _SLOWDOWN_MIN_MS:
            return
        measured = done.outcome.compute_ms / done.outcome.expected_ms
        self._slowdown += _SLOWDOWN_WEIGHT * (measured - self._slowdown)

    def take(self) -> Credit | None:
        """The report, or None when there is nothing new to say."""
        now = time.monotonic()
        elapsed_s, self._since = now - self._since, now
        busy_ms, self._busy_ms = self._busy_ms, 0.0
        if not busy_ms:
            if abs(self._slowdown - 1.0) < 0.01:
                return None
            self._slowdown += (1.0 - self._slowdown) * -math.expm1(-elapsed_s / _SLOWDOWN_MEMORY_S)
        busy = min(busy_ms / (elapsed_s * 1e3), 1.0) if elapsed_s > 0 else 0.0
        return Credit(credits=0, busy_fraction=busy, slowdown=self._slowdown)


class _GatewayLink:
    """The connection to one gateway: greets it, beats, and greets it again whenever it has forgotten us."""

    def __init__(
        self,
        socket: zmq.Socket[Any],
        endpoint: str,
        key: str,
        hello: ReplicaHello,
        limits: WireLimits,
        worker: Worker,
        pace: _Pace,
        taken_in: asyncio.Event,
    ) -> None:
        self.endpoint = endpoint
        self.accepted = False
        self.released = asyncio.Event()
        self._socket = socket
        self._hello = encode_message(hello)
        self._limits = limits
        self._worker = worker
        self._pace = pace
        self._taken_in = taken_in
        self._replica = hello.replica
        self._greeted = False
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

    def beat(self, credit: Credit | None) -> None:
        """One heartbeat: the greeting until it is out, then a sign of life."""
        if self._leaving or time.monotonic() < self._greet_after:
            return
        if not self._greeted:
            self._greeted = self.send(self._hello)
        elif credit is not None:
            self.send(encode_message(credit))
        if self._greeted:
            self.send(encode_message(Ping()))

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
            return
        kind = message.type
        if kind is MessageType.INFER:
            self._worker.submit(message, partial(self._on_done, message.request_id, message.cut))
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

    def _on_done(self, request_id: int, cut: int, done: Done) -> None:
        self._pace.on_done(done)
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
        result = Result(tensors=outcome.tensors, timings=timings, replica=self._replica)
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
