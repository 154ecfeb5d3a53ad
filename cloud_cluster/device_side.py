"""The gateway's face to the devices: sessions, cards, spans and admission.

Of an INFER frame 0 is read, and of its header how much work it asks for; header and tensors pass through as
they came.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from cloud_cluster.admission import DeviceLimits
from cloud_cluster.connections import Connection, Eviction
from cloud_cluster.dispatch import Action, Dispatcher, Request
from cloud_cluster.doorway import Doorway
from cloud_cluster.infer_work import expected_work_ms
from cloud_cluster.keys import Doorkeeper
from cloud_cluster.serving import Serving
from cloud_cluster.sessions import DeviceSession, Sessions
from cloud_cluster.sockets import Inbox, try_send
from shared.errors import AuthError, LimitError, ProtocolError, SutureError, UnavailableError, VersionError
from shared.wire import (
    NO_BUDGET,
    Buffer,
    Frame0,
    MessageType,
    WireLimits,
    decode_message,
    encode_message,
    error_reply,
    peek,
)
from shared.wire.limits import MAX_TENSORS
from shared.wire.messages import Card, Goodbye, Limits, Pong

__all__ = ["DeviceSide", "Ticket"]

log = logging.getLogger("suture.gateway")

# Of so many peers that speak another version it is remembered that they were told.
_STRANGERS = 1024


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the gateway keeps of a request beside the dispatcher's own record: the ``body`` there."""

    device_request_id: int
    has_budget: bool
    span_ms: float
    frames: list[zmq.Frame]


class DeviceSide:
    """Reads the devices' socket.  ``apply`` carries out what the dispatcher decides."""

    def __init__(
        self,
        socket: zmq.Socket[Any],
        card: Card,
        dispatcher: Dispatcher,
        serving: Serving,
        sessions: Sessions,
        now_ms: Callable[[], float],
        apply: Callable[[list[Action], float], None],
        doorway: Doorway,
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        self._socket = socket
        self._card = card
        self._dispatcher = dispatcher
        self._serving = serving
        self._sessions = sessions
        self._now_ms = now_ms
        self._apply = apply
        self._wire_limits = WireLimits.from_card(card.limits)
        self._strangers: dict[bytes, None] = {}
        self._doorway = doorway
        self._doorkeeper = doorkeeper
        self._eviction = Eviction(lambda identity, error: self._send_error(identity, 0, error))
        self.inbox = Inbox(socket, self._on_message)

    @property
    def limits(self) -> Limits:
        return self._card.limits

    def reply(self, request: Request, frames: Sequence[Buffer | zmq.Frame]) -> None:
        """Send a request's one answer, unless nobody waits for it any more."""
        session = self._sessions.get(request.device)
        if request.abandoned or session is None:
            return
        session.requests.pop(_ticket(request).device_request_id, None)
        self._send(request.device, frames)

    def fail(self, request: Request, error: SutureError) -> None:
        """Answer a request with an error."""
        device_request_id = _ticket(request).device_request_id
        self.reply(request, encode_message(error_reply(error), request_id=device_request_id))

    def set_card(self, card: Card, *, models_changed: bool = False) -> None:
        """What is the same on every card; the devices are told when that or what is served has changed."""
        if models_changed or card != self._card:
            self._card = card
            self.send_cards()

    def send_cards(self) -> None:
        """Tell every device anew what is served."""
        for session in self._sessions:
            self._send_card(session)

    def forget(self, identity: bytes, why: str) -> None:
        """End a session; what the device has queued is dropped."""
        session = self._sessions.close(identity)
        if session is not None:
            self._doorway.on_parted(identity)
            log.info("device %s is gone: %s", session.agent, why)
            self._dispatcher.device_gone(identity)

    def strike(self, request: Request) -> None:
        """A replica could not read this request: the device's fault, as if it had been seen here."""
        session = self._sessions.get(request.device)
        if session is not None:
            self._strike(session.identity, session.key, session.connection, self._now_ms())

    def revoke(self, key: str) -> None:
        """End what goes on under a key that is listed no more, and close its connections."""
        for session in self._sessions.of_key(key):
            self._eviction.evict(session.identity, session.connection, _unlisted(key))
            self.forget(session.identity, "its key is revoked")

    def close(self) -> None:
        self._eviction.close()
        self.inbox.close()

    def say_goodbye(self, reason: str) -> None:
        for session in self._sessions:
            self._send(session.identity, encode_message(Goodbye(reason=reason)))

    def _on_message(self, frames: list[zmq.Frame]) -> None:
        now_ms = self._now_ms()
        identity, message = frames[0].bytes, frames[1:]
        key = ""
        if self._doorkeeper is not None:
            key = str(frames[-1].get("User-Id"))
            if self._doorkeeper.device(key) is None:
                self._eviction.evict(identity, Connection.of(frames[-1]), _unlisted(key))
                return
        if not self._doorway.lets_in(key.encode() or identity, frames[-1], now_ms):
            return
        session = self._sessions.get(identity)
        try:
            if session is not None and session.key != key:
                # Its own connection has ended, or ZeroMQ would not give the id to another.
                self.forget(identity, "another key came under its routing id")
                raise AuthError("this routing id is another device's; send HELLO for a session of your own")
            if session is not None:
                session.heard_ms = now_ms
            frame0 = Frame0.unpack(message[0].buffer if message else b"")
            if frame0.type is MessageType.HELLO:
                self._on_hello(identity, key, frame0, message, now_ms)
                self._doorway.on_greeted(identity, frames[-1])
            elif session is not None:
                self._on_session_message(session, frame0, message, now_ms)
            elif frame0.type is not MessageType.ANNOUNCE:
                raise UnavailableError("this gateway has no session with this device; send HELLO again")
        except SutureError as error:
            if isinstance(error, VersionError):
                self._tell_stranger(identity, error)
            else:
                seen = peek(message[0].buffer) if message else None
                self._send_error(identity, seen[2] if seen else 0, error)
            if isinstance(error, ProtocolError):
                self._strike(identity, key, Connection.of(frames[-1]), now_ms)

    def _on_session_message(
        self, session: DeviceSession, frame0: Frame0, message: list[zmq.Frame], now_ms: float
    ) -> None:
        kind = frame0.type
        if kind is MessageType.INFER:
            self._on_infer(session, frame0, message, now_ms)
        elif kind is MessageType.ANNOUNCE:
            session.on_announce(frame0.request_id, now_ms)
        elif kind is MessageType.PING:
            self._on_ping(session, frame0, message, now_ms)
        elif kind is MessageType.CANCEL:
            self._dispatcher.cancel(session.requests.pop(frame0.request_id, 0))
        elif kind is MessageType.GOODBYE:
            self.forget(session.identity, "it said goodbye")
        else:
            raise ProtocolError(f"{kind.name} is not for a gateway")

    def _on_hello(
        self, identity: bytes, key: str, frame0: Frame0, message: list[zmq.Frame], now_ms: float
    ) -> None:
        hello = decode_message([frame.buffer for frame in message], self._wire_limits).header
        session = self._sessions.open(
            identity, hello, now_ms, key, Connection.of(message[0]) if key else None
        )
        surplus = self._sessions.surplus(key) if key else None
        if surplus is not None:
            self.forget(surplus.identity, "its key has newer sessions")
        log.info("device %s says hello and offers %s", hello.agent, ", ".join(session.offers))
        self._send_card(session, frame0.request_id)

    def _on_infer(
        self, session: DeviceSession, frame0: Frame0, message: list[zmq.Frame], now_ms: float
    ) -> None:
        span_ms = session.take_span_ms(frame0.request_id, now_ms) or 0.0
        if len(message) != frame0.tensor_count + 2 or len(message) > MAX_TENSORS + 2:
            raise ProtocolError(
                f"frame 0 counts {frame0.tensor_count} tensors, {len(message) - 2} came after the header"
            )
        nbytes = sum(map(len, message))
        if nbytes > self.limits.max_message_bytes:
            raise LimitError(
                f"a message of {nbytes} bytes; at most {self.limits.max_message_bytes} are accepted"
            )
        if frame0.request_id in session.requests:
            raise ProtocolError(f"request {frame0.request_id} of this device is already in flight")
        version = self._serving.registry.version_for(frame0.model, session.offers)
        work_ms = expected_work_ms(version, frame0.cut, message[1].buffer, self.limits)
        has_budget = frame0.budget_ms != NO_BUDGET
        request, actions = self._dispatcher.admit(
            session.identity,
            frame0.model,
            nbytes=nbytes,
            # The budget was stamped when the sending began, and that is when the announcement came.
            deadline_ms=now_ms - span_ms + frame0.budget_ms if has_budget else math.inf,
            work_ms=work_ms,
            body=Ticket(frame0.request_id, has_budget, span_ms, message),
            now_ms=now_ms,
            account=session.key.encode() or None,
            limits=self._account_limits(session),
        )
        session.requests[frame0.request_id] = request.id
        self._apply(actions, now_ms)

    def _on_ping(
        self, session: DeviceSession, frame0: Frame0, message: list[zmq.Frame], now_ms: float
    ) -> None:
        ping = decode_message([frame.buffer for frame in message], self._wire_limits).header
        for index in ping.wanted or ():
            self._serving.want(index)
        span_ms = session.take_span_ms(frame0.request_id, now_ms)
        pong = Pong() if span_ms is None else Pong(span_ms=span_ms, span_bytes=sum(map(len, message)))
        self._send(session.identity, encode_message(pong, request_id=frame0.request_id))

    def _strike(self, identity: bytes, key: str, connection: Connection | None, now_ms: float) -> None:
        verdict = self._doorway.strike(key.encode() or identity, now_ms)
        if verdict is not None:
            self._eviction.evict(identity, connection, verdict)
            self.forget(identity, "too much of what it sends is no message")

    def _tell_stranger(self, identity: bytes, error: VersionError) -> None:
        if identity in self._strangers:
            return
        self._strangers[identity] = None
        if len(self._strangers) > _STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        self._send_error(identity, error.request_id, error)

    def _account_limits(self, session: DeviceSession) -> DeviceLimits | None:
        """Those that the device's public file sets, over all sessions of its key; None without keys."""
        listed = self._doorkeeper.device(session.key) if self._doorkeeper is not None else None
        if listed is None:
            return None
        usual = self._card.limits
        return DeviceLimits(
            listed.max_in_flight or usual.max_in_flight,
            listed.max_in_flight_bytes or usual.max_in_flight_bytes,
            listed.weight,
        )

    def _send_card(self, session: DeviceSession, request_id: int = 0) -> None:
        limits, own = self._card.limits, self._account_limits(session)
        if own is not None:
            limits = msgspec.structs.replace(
                limits, max_in_flight=own.max_in_flight, max_in_flight_bytes=own.max_in_flight_bytes
            )
        card = msgspec.structs.replace(
            self._card, limits=limits, models=self._serving.registry.cards(session.offers)
        )
        self._send(session.identity, encode_message(card, request_id=request_id))

    def _send_error(self, identity: bytes, request_id: int, error: SutureError) -> None:
        self._send(identity, encode_message(error_reply(error), request_id=request_id))

    def _send(self, identity: bytes, frames: Sequence[Buffer | zmq.Frame]) -> None:
        if not try_send(self._socket, [identity, *frames]):
            self.forget(identity, "it is unreachable, or it does not read its answers")
        self.inbox.nudge()


def _unlisted(key: str) -> AuthError:
    return AuthError(
        f"this gateway no longer lists this device's key {key}; put its .key file into gateway.keys.devices"
    )


def _ticket(request: Request) -> Ticket:
    assert isinstance(request.body, Ticket)
    return request.body
