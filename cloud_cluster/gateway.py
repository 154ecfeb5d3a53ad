"""Between devices and replicas: admission, deadlines, dispatch by credit, and the truth about the load.

Three sockets: a ROUTER for devices, a ROUTER for replicas, a PUB for load reports.  This is the shell:
it binds, runs the loops and carries out what :mod:`cloud_cluster.dispatch` decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import zmq

from cloud_cluster.device_side import DeviceSide
from cloud_cluster.dispatch import Action, Dispatcher, Fail, Send
from cloud_cluster.doorway import Doorway
from cloud_cluster.feed import Feed
from cloud_cluster.handshakes import HandshakeWatch
from cloud_cluster.keys import Doorkeeper, Port
from cloud_cluster.load import LoadMeter
from cloud_cluster.loops import Loops
from cloud_cluster.parking import Parking
from cloud_cluster.replica_side import ReplicaSide
from cloud_cluster.serving import Serving
from cloud_cluster.sessions import Sessions
from cloud_cluster.sockets import Inbox, bind, let_go, require_loopback
from shared.config import GatewayConfig, ServedModelConfig
from shared.wire import encode_message
from shared.wire.messages import Card, Limits

__all__ = ["Gateway"]

log = logging.getLogger("suture.gateway")

# A replica that is connected but says nothing has a stuck event loop; a dead one is seen at once.
_REPLICA_SILENCE_FACTOR = 10.0
# The monitor reports a lost connection a little before ROUTER knows of it.
_PROBE_DELAYS_S = (0.005, 0.05)
_LOAD_CHECKS_PER_PERIOD = 5
_LINGER_MS = 200


class Gateway:
    """``models`` are the networks to serve at the start; :meth:`reconfigure` names others.

    A network's label is its name, and its version where it has one.  ``on_unserved`` is called with the
    label of a network that a device asked for while there was no replica of it, some milliseconds later and
    as often as once in a fifth of the load period.

    :meth:`start` binds, :meth:`run` works until stopped and raises on a defect, :meth:`stop` says
    goodbye and closes.  All three belong to one event loop.  The endpoints are known after the start.
    """

    def __init__(
        self, config: GatewayConfig, models: Sequence[ServedModelConfig], name: str | None = None
    ) -> None:
        require_loopback(config.host, keys=config.keys is not None, insecure=config.insecure)
        self._doorkeeper = Doorkeeper(config.keys) if config.keys is not None else None
        self.name = name or f"gateway-{secrets.token_hex(4)}"
        self.device_endpoint = self.replica_endpoint = self.load_endpoint = ""
        self._config = config
        self.on_unserved: Callable[[str], None] = lambda _label: None
        self._dispatcher = Dispatcher(
            [],
            config.max_in_flight,
            config.max_in_flight_bytes,
            # Far from any earlier life's ids, so that a late answer to one of those matches nothing.
            first_id=secrets.randbits(62) + 1,
            max_bytes=config.max_bytes,
        )
        self._serving = Serving(models, self._dispatcher)
        self._sessions = Sessions(config.max_devices, config.max_in_flight, config.device_silence_s * 1e3)
        self._meter = LoadMeter(self.name, config.load_period_ms)
        self._gateways: tuple[list[str], list[str]] = [], []
        self._pending: deque[Action] = deque()
        self._applying = False
        self._loops = Loops()
        self._expiry_ms = math.inf
        self._deadline_came_nearer = asyncio.Event()
        self._connection_lost = asyncio.Event()
        self._context: zmq.Context[Any] | None = None
        self._sockets: list[zmq.Socket[Any]] = []
        self._inboxes: list[Inbox] = []
        self._watches: list[HandshakeWatch] = []
        self._parkings = [
            Parking(config.max_message_bytes, config.max_devices, config.max_parked_bytes) for _ in range(2)
        ]
        self._doorways = [
            Doorway(parking, purpose)
            for parking, purpose in zip(self._parkings, ("devices", "replicas"), strict=True)
        ]

    async def start(self) -> None:
        """Bind the three ports.  Raises StartupError naming the one that cannot be had."""
        config = self._config
        self._context = zmq.Context()
        if self._doorkeeper is not None:
            self._inboxes.append(self._doorkeeper.open(self._context))
        devices = self._device_socket = self._socket(zmq.ROUTER, Port.DEVICES)
        # No ZeroMQ heartbeat here: its answer would wait behind the frame that a slow link is carrying.
        self._bound_queues(config.max_in_flight)
        replicas = self._socket(zmq.ROUTER, Port.REPLICAS)
        replicas.setsockopt(zmq.ROUTER_HANDOVER, 1)
        replicas.setsockopt(zmq.HEARTBEAT_IVL, int(config.heartbeat_ms))
        replicas.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(config.heartbeat_timeout_ms))
        feed = self._socket(zmq.XPUB, Port.DEVICES)
        self._feed = Feed(feed, keys=self._doorkeeper is not None)
        self._inboxes.append(self._feed.inbox)
        for router in (devices, replicas):
            router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            router.setsockopt(zmq.MAXMSGSIZE, config.max_message_bytes)
        try:
            self.device_endpoint = await self._bind(devices, config.device_port, "devices")
            self.replica_endpoint = await self._bind(replicas, config.replica_port, "replicas")
            self.load_endpoint = await self._bind(feed, config.load_port, "the load feed")
        except BaseException:
            await self._close()
            raise
        self._devices = DeviceSide(
            devices,
            self._card(),
            self._dispatcher,
            self._serving,
            self._sessions,
            _now_ms,
            self._apply,
            self._doorways[0],
            self._doorkeeper,
        )
        self._replicas = ReplicaSide(
            replicas,
            self._dispatcher,
            self._serving,
            self._meter,
            self._devices,
            _now_ms,
            self._apply,
            self._doorways[1],
        )
        key = self._doorkeeper.public if self._doorkeeper is not None else ""
        self._watches = [
            HandshakeWatch(devices, "devices", key, on_accepted=self._doorways[0].on_accepted),
            HandshakeWatch(
                replicas, "replicas", key, self._connection_lost.set, self._doorways[1].on_accepted
            ),
            HandshakeWatch(feed, "the load feed", key),
        ]
        self._inboxes += [self._devices.inbox, self._replicas.inbox, *(each.inbox for each in self._watches)]
        log.info("devices at %s, replicas at %s", self.device_endpoint, self.replica_endpoint)

    async def run(self) -> None:
        """Work until stopped or cancelled; raises what a defect raised.  After :meth:`start`."""
        await self._loops.run(
            {
                **{
                    f"{self.name} inbox {number}": inbox.failed()
                    for number, inbox in enumerate(self._inboxes)
                },
                **{
                    f"{self.name} doorway {number}": doorway.run()
                    for number, doorway in enumerate(self._doorways)
                },
                f"{self.name} deadlines": self._expire(),
                f"{self.name} load feed": self._publish_load(),
                f"{self.name} silence": self._watch_silence(),
                f"{self.name} lost replicas": self._find_lost_replicas(),
                f"{self.name} keys": self._watch_keys(),
            }
        )

    async def stop(self, reason: str = "the gateway stops") -> None:
        """Say goodbye to everyone and close.  Requests that are still here get no answer."""
        await self._loops.stop()
        if self._watches:
            self._devices.say_goodbye(reason)
            self._replicas.say_goodbye(reason)
        await self._close()

    def ready(self, label: str) -> int:
        """How many replicas of a network are here."""
        return self._serving.registry.ready(label)

    def set_target(self, label: str, target: int, starting: int) -> None:
        """How many replicas there are to be and how many are on their way, for the devices to know."""
        self._serving.set_target(label, target, starting)

    def reconfigure(self, models: Sequence[ServedModelConfig], config: GatewayConfig | None = None) -> None:
        """Serve these networks from now on.  What others have under way is finished, and nothing more.

        Of another ``config`` only the limits count, those that :mod:`cloud_cluster.upgrades` calls live.
        """
        if config is not None and config != self._config:
            self._limit(config)
        self._serving.configure(models)
        if self._watches:
            self._devices.set_card(self._card(), models_changed=True)

    def _limit(self, config: GatewayConfig) -> None:
        self._config = config
        self._dispatcher.limit(config.max_in_flight, config.max_in_flight_bytes, config.max_bytes)
        self._sessions.limit(config.max_devices, config.max_in_flight, config.device_silence_s * 1e3)
        self._meter.period_ms = config.load_period_ms
        for parking in self._parkings:
            parking.limit(config.max_devices, config.max_parked_bytes)
        # Never lower: libzmq then waits for a count that it has passed, and the connection stands still.
        if self._watches and config.max_in_flight > self._queued_at_most:
            self._bound_queues(config.max_in_flight)

    def set_gateways(self, device_endpoints: Sequence[str], load_endpoints: Sequence[str]) -> None:
        """Where the gateways of this cluster are, for the devices to know."""
        self._gateways = list(device_endpoints), list(load_endpoints)
        if self._watches:
            self._devices.set_card(self._card())

    def status(self) -> dict[str, Any]:
        """For people: endpoints, devices, and the load of every model."""
        return {
            "gateway": self.name,
            "device_endpoint": self.device_endpoint,
            "load_endpoint": self.load_endpoint,
            "devices": len(self._sessions),
            "load_reports": self._meter.sequence,
            "keys": self._doorkeeper.status() if self._doorkeeper is not None else None,
            "failed_handshakes": dict(sum((watch.failed for watch in self._watches), Counter())),
            "models": self._serving.status(self._sessions.offers(), _now_ms()),
        }

    def _card(self) -> Card:
        config = self._config
        return Card(
            gateway=self.name,
            software=f"suture {version('suture')}",
            limits=Limits(
                max_in_flight=config.max_in_flight,
                max_in_flight_bytes=config.max_in_flight_bytes,
                max_message_bytes=config.max_message_bytes,
                heartbeat_ms=config.heartbeat_ms,
                heartbeat_timeout_ms=config.heartbeat_timeout_ms,
            ),
            models=[],
            load_endpoint=self.load_endpoint,
            gateways=self._gateways[0],
            load_endpoints=self._gateways[1],
        )

    def _bound_queues(self, max_in_flight: int) -> None:
        """Of every connection of a device; libzmq heeds it for those that there are, too."""
        self._queued_at_most = max_in_flight
        self._device_socket.setsockopt(zmq.RCVHWM, 2 * max_in_flight + 16)
        # A device that does not read its answers is forgotten before many of them wait for it.
        self._device_socket.setsockopt(zmq.SNDHWM, max_in_flight + 16)

    def _socket(self, kind: int, port: Port) -> zmq.Socket[Any]:
        assert self._context is not None
        socket: zmq.Socket[Any] = self._context.socket(kind)
        if self._doorkeeper is not None:
            self._doorkeeper.guard(socket, port)
        self._sockets.append(socket)
        return socket

    async def _bind(self, socket: zmq.Socket[Any], port: int, purpose: str) -> str:
        return await bind(socket, self._config.host, port, purpose, self._config.bind_retry_s)

    async def _close(self) -> None:
        for inbox in self._inboxes:
            inbox.close()
        if self._watches:
            self._devices.close()
        for watch in self._watches:
            watch.close()
        for socket in self._sockets:
            socket.close(linger=_LINGER_MS)
        self._inboxes, self._sockets, self._watches = [], [], []
        if self._doorkeeper is not None:
            self._doorkeeper.close()
        context, self._context = self._context, None
        if context is not None:
            await let_go(context)

    def _apply(self, actions: list[Action], now_ms: float) -> None:
        """Carry out actions in order, and those that follow from a replica found lost meanwhile."""
        self._pending.extend(actions)
        if self._applying:
            return
        self._applying = True
        try:
            while self._pending:
                action = self._pending.popleft()
                if isinstance(action, Send):
                    if not self._replicas.send_work(action.request, action.replica, now_ms):
                        self._replicas.lose(action.replica, "it takes no more work", now_ms)
                elif isinstance(action, Fail):
                    self._devices.fail(action.request, action.error)
                else:
                    self._replicas.release(action.replica)
        finally:
            self._applying = False
        if self._dispatcher.next_deadline_ms() < self._expiry_ms:
            self._deadline_came_nearer.set()

    async def _expire(self) -> None:
        while True:
            now_ms = _now_ms()
            self._apply(self._dispatcher.expire(now_ms), now_ms)
            self._deadline_came_nearer.clear()
            self._expiry_ms = self._dispatcher.next_deadline_ms()
            left_s = None if math.isinf(self._expiry_ms) else (self._expiry_ms - now_ms) / 1e3
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._deadline_came_nearer.wait()

    async def _publish_load(self) -> None:
        while True:
            now_ms = _now_ms()
            loads, devices = self._serving.loads(now_ms), len(self._sessions)
            if self._meter.due_ms(loads, devices) <= now_ms:
                self._feed.publish(encode_message(self._meter.report(loads, now_ms, devices)))
            for label in self._serving.take_wanted(now_ms):
                self.on_unserved(label)
            await asyncio.sleep(self._config.load_period_ms / 1e3 / _LOAD_CHECKS_PER_PERIOD)

    async def _watch_silence(self) -> None:
        silence_ms = self._config.heartbeat_timeout_ms * _REPLICA_SILENCE_FACTOR
        while True:
            await asyncio.sleep(self._config.heartbeat_ms / 1e3)
            self._replicas.lose_silent(silence_ms)
            for session in self._sessions.silent(_now_ms()):
                self._devices.forget(session.identity, "it is silent")
            self._serving.prune(self._sessions.offers())

    async def _watch_keys(self) -> None:
        if self._doorkeeper is not None:
            await self._doorkeeper.watch(self._revoke, self._devices.send_cards)

    def _revoke(self, key: str) -> None:
        self._devices.revoke(key)
        self._feed.revoke(key)

    async def _find_lost_replicas(self) -> None:
        while True:
            await self._connection_lost.wait()
            self._connection_lost.clear()
            for delay_s in _PROBE_DELAYS_S:
                await asyncio.sleep(delay_s)
                self._replicas.lose_unreachable()


def _now_ms() -> float:
    return time.monotonic() * 1e3
