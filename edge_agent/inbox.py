"""Receiving from ZeroMQ on an event loop: one reader per socket, which no timeout ever cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import zmq

__all__ = ["Inbox", "send_now"]

Handler = Callable[[list[memoryview]], None]

# A socket that always has something to read must not starve the rest of the loop.
_MESSAGES_PER_TURN = 32

# Plain numbers: pyzmq's enums cost more than the calls that they are for.
_NOW, _NOW_AND_MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)


class Inbox:
    """Hands every message of a socket to ``handler``, in order, from the loop's own readiness event.

    The frames are views of ZeroMQ's memory, which lives as long as they do.  A handler that raises is a
    defect: reading stops and :attr:`failure` holds what it raised.
    """

    def __init__(self, socket: zmq.Socket[Any], handler: Handler) -> None:
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._socket = socket
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._fd: int = socket.fileno()
        self._again: asyncio.Handle | None = None
        self._closed = False
        self._loop.add_reader(self._fd, self._read)
        self.look_again()

    def look_again(self) -> None:
        """Read on the loop's next turn if there is something.

        Needed after every send: the descriptor signals an edge only, and sending may have consumed it.
        """
        if self._again is None and not self._closed and _is_readable(self._socket):
            self._again = self._loop.call_soon(self._read)

    def close(self) -> None:
        """Stop reading.  Idempotent; the socket is still the caller's to close, afterwards."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        if self._again is not None:
            self._again.cancel()
        if not self.failure.done():
            self.failure.cancel()

    def _read(self) -> None:
        self._again = None
        try:
            for _ in range(_MESSAGES_PER_TURN):
                # Asked for first: that there is nothing is the usual end, and an exception costs more.
                if self._closed or not _is_readable(self._socket):
                    return
                try:
                    frames = [self._socket.recv(_NOW, copy=False)]
                    while frames[-1].more:
                        frames.append(self._socket.recv(_NOW, copy=False))
                except zmq.Again:
                    return
                self._handler([frame.buffer for frame in frames])
        except Exception as error:  # noqa: BLE001 - a defect; whoever awaits the failure raises it
            self.failure.set_exception(error)
            self.close()
            return
        self.look_again()


def _is_readable(socket: zmq.Socket[Any]) -> bool:
    return bool(int(socket.get(_EVENTS)) & _READABLE)


def send_now(socket: zmq.Socket[Any], frames: Sequence[Any]) -> bool:
    """Send at once, or not at all and return False: nobody is connected, or too much is queued.

    Large frames are not copied and must not change afterwards.
    """
    try:
        for frame in frames[:-1]:
            socket.send(frame, _NOW_AND_MORE, copy=False)
        socket.send(frames[-1], _NOW, copy=False)
    except zmq.Again:
        return False
    except zmq.ZMQError as error:
        if error.errno == zmq.EHOSTUNREACH:  # a ROUTER whose peer has gone
            return False
        raise
    return True
