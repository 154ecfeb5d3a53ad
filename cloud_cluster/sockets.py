"""ZeroMQ sockets on an event loop, without a future per message.

:class:`Inbox` is the one reader of a socket.  It hands each message to a callback straight from the
loop's readiness event, which costs a tenth of what ``zmq.asyncio`` costs and cannot lose a message to
a cancelled receive.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from shared.errors import ConfigError, StartupError

__all__ = ["Inbox", "bind", "let_go", "require_loopback", "tcp_endpoint", "try_send"]

log = logging.getLogger("suture.sockets")

Handler = Callable[[list[zmq.Frame]], None]

# A socket that always has something ready must not starve the rest of the loop.
_MESSAGES_PER_TURN = 32
_BIND_RETRY_S = 0.1
_LET_GO_S = 3.0

# Plain numbers: pyzmq's enums cost more than the calls that they are for.
_NOW, _NOW_AND_MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)


class Inbox:
    """Calls ``handler`` with the frames of every message that arrives, in order, until closed.

    The frames are not copied out of ZeroMQ.  A handler that raises is a defect: reading stops, and
    :meth:`failed` raises what it raised.
    """

    def __init__(self, socket: zmq.Socket[Any], handler: Handler) -> None:
        self._socket = socket
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._closed = False
        self._soon: asyncio.Handle | None = None
        self._loop.add_reader(socket.fileno(), self._drain)
        self.nudge()

    def nudge(self) -> None:
        """Look again soon if there is something.

        To be called after every send: the descriptor only signals an edge, and a send may have taken
        the edge that told of a message.
        """
        if not self._closed and self._soon is None and _is_readable(self._socket):
            self._soon = self._loop.call_soon(self._drain)

    async def failed(self) -> None:
        """Waits for ever, unless the handler fails: then raises its exception.  Safe to cancel."""
        await asyncio.shield(self._failure)

    def close(self) -> None:
        """Stop reading; the socket stays the caller's to close."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        if self._soon is not None:
            self._soon.cancel()

    def _drain(self) -> None:
        self._soon = None
        if self._closed:
            return
        try:
            for _ in range(_MESSAGES_PER_TURN):
                # Asked for first: that there is nothing is the usual end, and an exception costs more.
                if not _is_readable(self._socket):
                    return
                try:
                    frames = receive_now(self._socket)
                except zmq.Again:
                    return
                self._handler(frames)
                if self._closed:
                    return
        except Exception as error:  # noqa: BLE001 - a defect in the handler ends the process through failed()
            self.close()
            self._failure.set_exception(error)
            return
        self.nudge()


def _is_readable(socket: zmq.Socket[Any]) -> bool:
    return bool(int(socket.get(_EVENTS)) & _READABLE)


def receive_now(socket: zmq.Socket[Any]) -> list[zmq.Frame]:
    """The frames of one message, not copied.  Raises zmq.Again when there is none."""
    frames = [socket.recv(_NOW, copy=False)]
    while frames[-1].more:
        frames.append(socket.recv(_NOW, copy=False))
    return frames


def try_send(socket: zmq.Socket[Any], frames: Sequence[Any]) -> bool:
    """Send now or not at all: False when the peer is gone or does not read.

    Large frames are sent without a copy and must not be changed afterwards.
    """
    try:
        for frame in frames[:-1]:
            socket.send(frame, _NOW_AND_MORE, copy=False)
        socket.send(frames[-1], _NOW, copy=False)
    except zmq.Again:
        return False
    except zmq.ZMQError as error:
        if error.errno == zmq.EHOSTUNREACH:
            return False
        raise
    return True


def require_loopback(host: str, *, keys: bool, insecure: bool) -> None:
    """Raises ConfigError for an address that others can reach, unless there are keys or it was asked for."""
    if keys or insecure or host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(
            f"gateway.host {host} can be reached from other machines, and this gateway has no CURVE keys to "
            "tell friend from foe; set gateway.keys (docs/security.md says how, in four commands), bind "
            "127.0.0.1, or set gateway.insecure: true on a network where you trust everyone"
        )


async def bind(socket: zmq.Socket[Any], host: str, port: int, purpose: str, retry_s: float) -> str:
    """Bind to the port, 0 for a free one, and return the endpoint.

    Tries for ``retry_s``: on an update the gateway's successor starts while it still holds the port.
    Raises StartupError naming the port.
    """
    if ":" in host:
        socket.setsockopt(zmq.IPV6, 1)
    loop = asyncio.get_running_loop()
    give_up = loop.time() + retry_s
    while True:
        try:
            socket.bind(tcp_endpoint(host, port or "*"))
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:
                raise StartupError(f"cannot bind {host}:{port} for {purpose}: {error}") from error
            if loop.time() >= give_up:
                raise StartupError(
                    f"port {port} on {host} for {purpose} is in use by another program; stop that, "
                    "or give the gateway another port"
                ) from error
            await asyncio.sleep(_BIND_RETRY_S)
        else:
            return socket.getsockopt_string(zmq.LAST_ENDPOINT)


async def let_go(context: zmq.Context[Any], patience_s: float = _LET_GO_S) -> None:
    """End a context whose sockets are all closed; after ``patience_s`` it is left to a thread that dies with
    the process.

    ZeroMQ 4.3.5 now and then waits for ever for a socket that was closed just after a peer was cut off under
    a flood, when everything else of it has ended: nobody can do anything about it, or needs to.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def end() -> None:
        context.term()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=end, name="end of a ZeroMQ context", daemon=True).start()
    try:
        async with asyncio.timeout(patience_s):
            await ended.wait()
    except TimeoutError:
        log.warning("ZeroMQ has not let go of a closed socket within %g s, and is left behind", patience_s)


def tcp_endpoint(host: str, port: int | str) -> str:
    """The ZeroMQ endpoint of a host name or of an address of either family."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
