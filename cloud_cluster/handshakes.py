"""Handshakes that fail, which ZeroMQ tells nobody but a socket's monitor."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from cloud_cluster.sockets import Inbox

__all__ = ["DialWatch", "HandshakeWatch"]

log = logging.getLogger("suture.keys")

_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
# Anyone can make these happen, as often as they like.
_SILENCE_S = 60.0
_REDIAL_S = 1.0


class _Monitor:
    """Events of a socket, until closed; closing again does nothing.

    To be closed before the socket: ZeroMQ's own thread blocks for ever on an event that nobody can take.
    """

    def __init__(self, socket: zmq.Socket[Any], events: int, on_event: Callable[[int, int], None]) -> None:
        self._socket = socket
        self._monitor = socket.get_monitor_socket(events)
        self._on_event = on_event
        self.inbox = Inbox(self._monitor, self._on_frames)

    def close(self) -> None:
        self.inbox.close()
        if not self._monitor.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)

    def _on_frames(self, frames: list[zmq.Frame]) -> None:
        event = parse_monitor_message([frame.bytes for frame in frames])
        self._on_event(event["event"], int(event["value"]))


class HandshakeWatch:
    """Counts the handshakes that fail at a bound socket, and says in the log what to do about them.

    ``key`` is the public key that the socket has, "" where it has none.
    """

    def __init__(
        self,
        socket: zmq.Socket[Any],
        purpose: str,
        key: str,
        on_disconnected: Callable[[], None] = lambda: None,
        on_accepted: Callable[[int], None] = lambda fd: None,
    ) -> None:
        self.failed: Counter[str] = Counter()
        self._purpose = purpose
        self._key = key
        self._on_disconnected = on_disconnected
        self._on_accepted = on_accepted
        self._silent_until: dict[str, float] = {}
        events = _FAILED | zmq.EVENT_DISCONNECTED | zmq.EVENT_ACCEPTED
        self._monitor = _Monitor(socket, events, self._on_event)

    @property
    def inbox(self) -> Inbox:
        return self._monitor.inbox

    def close(self) -> None:
        self._monitor.close()

    def _on_event(self, event: int, value: int) -> None:
        if event == zmq.EVENT_DISCONNECTED:
            self._on_disconnected()
        elif event == zmq.EVENT_ACCEPTED:
            self._on_accepted(value)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.failed["unlisted key"] += 1  # the doorkeeper has told of it
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self.failed["connection lost"] += 1
        elif value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH and self._key:
            self._tell("no keys", "a peer came without keys; set `keys` in its configuration")
        elif value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self._tell("keys wanted", "a peer wants to see keys, and this gateway has none; set gateway.keys")
        elif value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
            self._tell(
                "another gateway's key",
                f"a peer takes this gateway for another one; its public key is {self._key}, to be set as "
                "cloud.keys.server on a device",
            )
        else:
            self._tell("no ZeroMQ", f"a peer does not speak ZeroMQ's protocol (0x{value:x})")

    def _tell(self, kind: str, what: str) -> None:
        self.failed[kind] += 1
        now = asyncio.get_running_loop().time()
        if now >= self._silent_until.get(kind, now):
            self._silent_until[kind] = now + _SILENCE_S
            log.warning("at the port for %s %s", self._purpose, what)


class DialWatch:
    """Says in the log why a connecting socket is not let in, and dials on: ZeroMQ gives up after a refusal.

    ``key`` is this side's public key, "" where it has none.
    """

    def __init__(self, socket: zmq.Socket[Any], endpoint: str, key: str) -> None:
        self._socket = socket
        self._endpoint = endpoint
        self._key = key
        self._told = ""
        self._redial: asyncio.TimerHandle | None = None
        self._monitor = _Monitor(socket, _FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED, self._on_event)

    @property
    def inbox(self) -> Inbox:
        return self._monitor.inbox

    def close(self) -> None:
        if self._redial is not None:
            self._redial.cancel()
        self._monitor.close()

    def _on_event(self, event: int, value: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._told = ""
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._tell(
                f"does not accept the replicas' key {self._key}; give gateway and replicas the same "
                "gateway.keys.replicas"
            )
            self._redial = asyncio.get_running_loop().call_later(_REDIAL_S, self._dial)
        elif self._key:
            self._tell(
                "ended the handshake: it has no keys, or another public key than the file beside "
                "gateway.keys.secret says"
            )
        else:
            self._tell("ended the handshake: it may want to see keys; set gateway.keys here as there")

    def _dial(self) -> None:
        self._redial = None
        try:
            self._socket.disconnect(self._endpoint)
        except zmq.ZMQError as error:
            if error.errno != errno.ENOENT:  # ZeroMQ has forgotten the endpoint along with the connection
                raise
        self._socket.connect(self._endpoint)

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            log.error("the gateway at %s %s", self._endpoint, what)
