"""The gateway's face to the replicas: who is here, work out by credit, answers in.

An answer's tensors pass through as they came; its header takes the gateway's own timings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zmq

from cloud_cluster.connections import Connection
from cloud_cluster.device_side import DeviceSide, Ticket
from cloud_cluster.dispatch import Action, Dispatcher, Request
from cloud_cluster.doorway import Doorway
from cloud_cluster.load import LoadMeter
from cloud_cluster.serving import Serving
from cloud_cluster.sockets import Inbox, try_send
from shared.errors import (
    CodecError,
    InternalError,
    LimitError,
    ProtocolError,
    SutureError,
    UnavailableError,
)
from shared.wire import (
    NO_BUDGET,
    Buffer,
    Message,
    MessageType,
    WireLimits,
    budget_from_ms,
    decode_message,
    encode_message,
    error_reply,
    peek,
    restamp,
)
from shared.wire.messages import Goodbye, Pong, TailTimings

__all__ = ["ReplicaSide"]

log = logging.getLogger("suture.gateway")

_DEVICES_FAULT = frozenset((ProtocolError.code, LimitError.code, CodecError.code))


class ReplicaSide:
    """Reads the replicas' socket.  ``apply`` carries out what the dispatcher decides."""

    def __init__(
        self,
        socket: zmq.Socket[Any],
        dispatcher: Dispatcher,
        serving: Serving,
        meter: LoadMeter,
        devices: DeviceSide,
        now_ms: Callable[[], float],
        apply: Callable[[list[Action], float], None],
        doorway: Doorway,
    ) -> None:
        self._socket = socket
        self._dispatcher = dispatcher
        self._serving = serving
        self._meter = meter
        self._devices = devices
        self._now_ms = now_ms
        self._apply = apply
        self._wire_limits = WireLimits(max_message_bytes=devices.limits.max_message_bytes)
        self._doorway = doorway
        self._heard_ms: dict[bytes, float] = {}
        self.inbox = Inbox(socket, self._on_message)

    def send_work(self, request: Request, replica: bytes, now_ms: float) -> bool:
        """Hand a request to a replica; False when it is gone."""
        ticket = request.body
        assert isinstance(ticket, Ticket)
        frame0 = restamp(
            ticket.frames[0].buffer,
            request_id=request.id,
            budget_ms=budget_from_ms(request.deadline_ms - now_ms) if ticket.has_budget else NO_BUDGET,
        )
        return self._send(replica, [frame0, *ticket.frames[1:]])

    def release(self, replica: bytes) -> None:
        """Tell a draining replica that nothing more will come."""
        self._heard_ms.pop(replica, None)
        self._doorway.on_parted(replica)
        self._send(replica, encode_message(Goodbye(reason="drained")))

    def lose(self, replica: bytes, why: str, now_ms: float) -> None:
        """A replica is gone; its work goes elsewhere."""
        if self._heard_ms.pop(replica, None) is None:
            return
        self._doorway.on_parted(replica)
        log.warning("replica %r is lost: %s", replica, why)
        self._leave(replica)
        self._apply(self._dispatcher.replica_gone(replica, now_ms), now_ms)

    def lose_unreachable(self) -> None:
        """Find the replicas whose connection is gone: ROUTER says so only to a sender."""
        for replica in list(self._heard_ms):
            if not self._send(replica, encode_message(Pong())):
                self.lose(replica, "its connection broke", self._now_ms())

    def lose_silent(self, silence_ms: float) -> None:
        """Find the replicas that are connected but have not said anything for too long."""
        now_ms = self._now_ms()
        for replica, heard_ms in list(self._heard_ms.items()):
            if now_ms - heard_ms > silence_ms:
                self.lose(replica, f"silent for {now_ms - heard_ms:.0f} ms", now_ms)

    def say_goodbye(self, reason: str) -> None:
        for replica in self._heard_ms:
            self._send(replica, encode_message(Goodbye(reason=reason)))

    def _on_message(self, frames: list[zmq.Frame]) -> None:
        now_ms = self._now_ms()
        replica, message = frames[0].bytes, frames[1:]
        if not self._doorway.lets_in(replica, frames[-1], now_ms):
            return
        known = replica in self._heard_ms
        if known:
            self._heard_ms[replica] = now_ms
        try:
            parsed = decode_message([frame.buffer for frame in message], self._wire_limits)
            if parsed.type is MessageType.REPLICA_HELLO:
                self._on_hello(replica, parsed, now_ms)
                self._doorway.on_greeted(replica, frames[-1])
            elif known:
                self._on_known(replica, parsed, message, now_ms)
            else:
                raise UnavailableError("this gateway does not know this replica; send REPLICA_HELLO again")
        except SutureError as error:
            log.warning("replica %r: %s", replica, error)
            seen = peek(message[0].buffer) if message else None
            request_id = seen[2] if seen else 0
            self._send(replica, encode_message(error_reply(error), request_id=request_id))
            # If this was to be an answer there will be no better one.
            self._finish(replica, request_id, InternalError(f"the replica's answer is unreadable: {error}"))
            verdict = self._doorway.strike(replica, now_ms) if isinstance(error, ProtocolError) else None
            if verdict is not None:
                self.lose(replica, str(verdict), now_ms)
                connection = Connection.of(frames[-1])
                if connection is not None:
                    connection.cut()

    def _on_known(self, replica: bytes, parsed: Message, message: list[zmq.Frame], now_ms: float) -> None:
        kind = parsed.type
        if kind is MessageType.RESULT:
            self._on_result(replica, parsed, message, now_ms)
        elif kind is MessageType.ERROR:
            self._on_error(replica, parsed, message, now_ms)
        elif kind is MessageType.CREDIT:
            credit = parsed.header
            actions = self._dispatcher.credit(
                replica, credit.credits, credit.slowdown, now_ms, credit.window, credit.elsewhere_ms
            )
            self._apply(actions, now_ms)
        elif kind is MessageType.PING:
            self._dispatcher.replica_heard(replica, now_ms)
            self._send(replica, encode_message(Pong(), request_id=parsed.request_id))
        elif kind is MessageType.GOODBYE:
            log.info("replica %r leaves: %s", replica, parsed.header.reason)
            self._leave(replica)
            self._apply(self._dispatcher.replica_draining(replica, now_ms), now_ms)
        else:
            raise ProtocolError(f"{kind.name} is not for a gateway")

    def _on_hello(self, replica: bytes, parsed: Message, now_ms: float) -> None:
        hello = parsed.header
        try:
            version = self._serving.join(replica, hello)
        except SutureError:
            self.lose(replica, "its new hello is refused", now_ms)
            raise
        self._heard_ms[replica] = now_ms
        log.info("replica %s serves %s with %d credits", hello.replica, hello.model, hello.credits)
        self._apply(self._dispatcher.replica_ready(replica, version.index, hello.credits, now_ms), now_ms)
        if len(version.replicas) == 1:
            self._devices.send_cards()

    def _on_result(self, replica: bytes, parsed: Message, message: list[zmq.Frame], now_ms: float) -> None:
        timings = parsed.header.timings
        request, actions = self._dispatcher.finished(
            replica, parsed.request_id, now_ms, _busy_ms(timings), timings.batch_requests
        )
        if request is not None:
            ticket = request.body
            assert isinstance(ticket, Ticket)
            self._meter.on_answer(request.model, timings.batch_requests)
            header = msgspec.structs.replace(
                parsed.header,
                span_ms=ticket.span_ms,
                span_bytes=request.nbytes if ticket.span_ms else 0,
                queue_ms=request.sent_ms - request.arrived_ms,
                gateway_ms=now_ms - request.arrived_ms,
            )
            frames = encode_message(
                header,
                parsed.payloads,
                request_id=ticket.device_request_id,
                model=parsed.model,
                cut=parsed.cut,
                codec=parsed.codec,
            )
            self._devices.reply(request, [*frames[:2], *message[2:]])
        self._apply(actions, now_ms)

    def _on_error(self, replica: bytes, parsed: Message, message: list[zmq.Frame], now_ms: float) -> None:
        request, actions = self._dispatcher.finished(replica, parsed.request_id, now_ms)
        if request is not None:
            ticket = request.body
            assert isinstance(ticket, Ticket)
            if parsed.header.code in _DEVICES_FAULT:
                self._devices.strike(request)
            frame0 = restamp(message[0].buffer, request_id=ticket.device_request_id)
            self._devices.reply(request, [frame0, *message[1:]])
        self._apply(actions, now_ms)

    def _finish(self, replica: bytes, request_id: int, error: SutureError) -> None:
        now_ms = self._now_ms()
        request, actions = self._dispatcher.finished(replica, request_id, now_ms)
        if request is not None:
            self._devices.fail(request, error)
        self._apply(actions, now_ms)

    def _leave(self, replica: bytes) -> None:
        """Forget what the replica serves, and tell the devices when it was the last of its kind."""
        version = self._serving.registry.leave(replica)
        if version is not None and not version.replicas:
            self._devices.send_cards()

    def _send(self, replica: bytes, frames: Sequence[Buffer | zmq.Frame]) -> bool:
        sent = try_send(self._socket, [replica, *frames])
        self.inbox.nudge()
        return sent


def _busy_ms(timings: TailTimings) -> float:
    """The request's share of the replica's time."""
    if timings.busy_ms:
        return timings.busy_ms
    stages_ms = timings.decode_ms + timings.compute_ms + timings.encode_ms
    return stages_ms / max(timings.batch_requests, 1)
