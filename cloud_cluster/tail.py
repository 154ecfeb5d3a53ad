"""A replica: holds one whole network, takes work from every gateway by credit, runs the units above the cut.

The event loop keeps receiving while one thread computes, so that with two credits the next request is
already here when the thread is free.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import zmq

from cloud_cluster.executor import BatchExecutor, Executor
from cloud_cluster.gateway_link import GatewayLink
from cloud_cluster.keys import ReplicaKeys
from cloud_cluster.loading import load_executor
from cloud_cluster.loops import Loops
from cloud_cluster.pace import Pace
from cloud_cluster.sockets import let_go
from cloud_cluster.worker import Worker
from shared.config import GatewayKeysConfig, ServedModelConfig
from shared.wire import SET_CUT, Message, WireLimits
from shared.wire.messages import Infer, ReplicaHello

__all__ = ["Tail"]

log = logging.getLogger("suture.tail")


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
        self.links: list[GatewayLink] = []
        self._worker: Worker | None = None
        self._pace = Pace()
        self._credits = self._held = model.credits
        self._executor: BatchExecutor | None = None
        self._work = _Work(())
        self._taken_in = asyncio.Event()
        self._loops = Loops()

    async def start(self) -> None:
        """Load, profile, connect.  Raises what :func:`cloud_cluster.loading.load_executor` raises."""
        worker = self._worker = Worker(self._make_executor, f"{self.replica} worker")
        executor = self._executor = await worker.start()
        self._held = _held(self._credits, executor)
        self._work = _Work(executor.unit_ms)
        self._context = zmq.Context()
        self._hello = ReplicaHello(
            replica=self.replica,
            model=self.model.name,
            digest=executor.digest,
            unit_ms=list(executor.unit_ms),
            credits=self._held,
            software=f"suture {version('suture')}",
            version=self.model.version,
            precision=executor.precision,
            tables=executor.tables_digest,
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
        for link in [link for link in self.links if link.endpoint not in endpoints]:
            log.info("%s leaves the gateway at %s, which is gone", self.replica, link.endpoint)
            self.links.remove(link)
            self._loops.remove(self._inbox_name(link))
            link.say_goodbye("this gateway counts as gone")
            link.close()
        for endpoint in dict.fromkeys(endpoints):
            if all(link.endpoint != endpoint for link in self.links):
                self._join(self._context, endpoint, self._hello)

    def set_credits(self, credits: int) -> None:
        """How many requests to hold at once from now on; the gateways hear of it with the next heartbeat."""
        self._credits = credits
        if self._executor is not None:
            self._held = _held(credits, self._executor)

    def _join(self, context: zmq.Context[Any], endpoint: str, hello: ReplicaHello) -> None:
        assert self._worker is not None
        link = GatewayLink(
            self._socket(context, endpoint),
            endpoint,
            self._keys.pair.public if self._keys is not None else "",
            hello,
            self._wire_limits,
            self._worker,
            self._pace,
            self._taken_in,
            self._work.ms,
        )
        self.links.append(link)
        if self._loops.running:
            self._loops.add(self._inbox_name(link), link.failed())

    def _inbox_name(self, link: GatewayLink) -> str:
        return f"{self.replica} inbox {link.endpoint}"

    @property
    def digest(self) -> str:
        """Of the network that it holds; "" before the start."""
        return self._executor.digest if self._executor is not None else ""

    @property
    def work_done(self) -> tuple[float, int]:
        """Milliseconds that the replica was busy, and requests that it has finished, since its start."""
        return self._pace.busy_total_ms, self._pace.finished

    @property
    def ready(self) -> bool:
        """Whether a gateway has taken this replica in."""
        return any(link.accepted for link in self.links)

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
                    **{self._inbox_name(link): link.failed() for link in self.links},
                }
            )
        except ExceptionGroup:
            # The gateways see the connection break, and give the work to others at once.
            for link in self.links:
                link.close()
            raise

    async def stop(self, drain_s: float = 5.0) -> None:
        """Say goodbye, answer what is here and what is on its way, and leave after ``drain_s`` at most."""
        # No more gateways are joined from here on.
        self._hello = None
        for link in self.links:
            link.say_goodbye("the replica stops")
        try:
            async with asyncio.timeout(drain_s):
                for link in self.links:
                    await link.released.wait()
        except TimeoutError:
            log.warning("%s leaves although a gateway has not released it", self.replica)
        await self._loops.stop()
        for link in self.links:
            link.close()
        if self._worker is not None:
            await self._worker.stop()
        if self._context is not None:
            await let_go(self._context)

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
            alive = sum(link.alive for link in self.links)
            in_hand_ms = sum(link.in_hand_ms for link in self.links)
            for link in self.links:
                sharing = alive if link.alive else alive + 1
                # Rounded, because a difference of sums is hardly ever exactly zero.
                elsewhere_ms = round(max(in_hand_ms - link.in_hand_ms, 0.0), 3)
                link.beat(credit, -(-self._held // sharing), elsewhere_ms)
            await asyncio.sleep(self._heartbeat_ms / 1e3)


def _held(credits: int, executor: BatchExecutor) -> int:
    """How many requests to hold at once: where batches pay, one batch that runs and one that waits."""
    useful = executor.curves.useful_batch(executor.max_batch)
    return max(credits, 2 * useful) if useful > 1 else credits


class _Work:
    """How much work a request is, in profiled ms."""

    def __init__(self, unit_ms: Sequence[float]) -> None:
        self._unit_ms = unit_ms
        self._from = [*accumulate(reversed(unit_ms), initial=0.0)][::-1]

    def ms(self, message: Message) -> float:
        infer: Infer = message.header
        if message.cut == SET_CUT:
            mask = int.from_bytes(infer.tail_units, "little")
            return infer.batch * sum(ms for unit, ms in enumerate(self._unit_ms) if mask >> unit & 1)
        return infer.batch * self._from[min(message.cut, len(self._unit_ms))]
