"""A slow link between two processes of one machine: a TCP relay with a rate, a delay and outages.

:class:`LinkRelay` accepts what the device would connect to the gateway and forwards it, byte by byte,
at the pace of :mod:`bench.shaping`.  All connections of a relay share one uplink and one downlink, as
they would share a radio.  It needs no privileges and works on any system with sockets; what it cannot
do is lose, reorder or mark packets, and TCP's own handshake is not delayed.

``python -m bench.link`` measures a relay in its own process against its own settings.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from bench.shaping import Lane, Trace

__all__ = ["LinkRelay", "Outage"]

Outage = Literal["reset", "black-hole"]

_READ_BYTES = 65_536
# Small, so that little waits in the kernel between the sender's own buffer, which is the sender's
# affair, and the link's queue.  Seen to carry over 2 Gbps on loopback.
_RECEIVE_BUFFER_BYTES = 16_384
# The segments of an Ethernet: loopback's own of 64 kB are larger than that window, and a sender that may
# not fill a segment waits for an acknowledgement that its peer is in no hurry to give.
_SEGMENT_BYTES = 1448
_MIN_QUEUE_BYTES = 16_384
_MAX_QUEUE_BYTES = 4 * 2**20
# SO_LINGER: close at once with a reset, as a broken link looks; or close after the last byte.
_RESET = struct.pack("ii", 1, 0)
_ORDERLY = struct.pack("ii", 0, 0)


class _End:
    """One socket of a connection, the lane that carries what is read from it, and its other end."""

    def __init__(self, sock: socket.socket, lane: Lane[_End], connected: bool) -> None:
        self.sock = sock
        self.lane = lane
        self.connected = connected
        self.read_closed = False
        self.finished = False
        self.outgoing: deque[memoryview] = deque()
        self.outgoing_bytes = 0
        self.other: _End = self

    @property
    def wants_read(self) -> bool:
        # What the far socket does not take must not pile up here, or the link would have no end.
        room = self.lane.room_bytes > 0 and self.other.outgoing_bytes < _READ_BYTES
        return room and self.connected and not self.read_closed

    @property
    def wants_write(self) -> bool:
        return bool(self.outgoing) or not self.connected


@dataclass(frozen=True, slots=True)
class _Replay:
    uplink: Trace
    downlink: Trace | None
    started_s: float


class LinkRelay:
    """Relay one port per ``upstream`` address, on loopback, from :meth:`start` until :meth:`stop`.

    ``delay_s`` is one way and applies in each direction, so a round trip costs twice that.
    ``queue_s`` is how much the link buffers at its rate, at least 16 kB: beyond it, the sender's own
    socket fills and blocks, which is how a slow link is felt.  ``ports`` are the listening ports,
    ``listen_ports`` asks for particular ones (0 takes a free one); OSError where one is in use.
    All methods may be called from any thread and return once the relay has acted.
    """

    def __init__(
        self,
        upstreams: Sequence[tuple[str, int]],
        *,
        uplink_bps: float = math.inf,
        downlink_bps: float = math.inf,
        delay_s: float = 0.0,
        queue_s: float = 0.1,
        listen_ports: Sequence[int] | None = None,
    ) -> None:
        now_s = time.monotonic()
        self._upstreams = tuple(upstreams)
        self._queue_s = queue_s
        self._rates = (uplink_bps, downlink_bps)
        self._up: Lane[_End] = Lane(uplink_bps, delay_s, self._queue_bytes(uplink_bps), now_s)
        self._down: Lane[_End] = Lane(downlink_bps, delay_s, self._queue_bytes(downlink_bps), now_s)
        self._ends: set[_End] = set()
        self._outage: Outage | None = None
        self._write_bytes: int | None = None
        self._replay: _Replay | None = None
        self._commands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._running = True
        # select() keeps microseconds in its timeout where epoll rounds to milliseconds.
        self._selector = selectors.SelectSelector()
        self._listeners: list[socket.socket] = []
        self.ports: tuple[int, ...] = tuple(listen_ports or (0,) * len(self._upstreams))
        self._listen()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._loop, name="link-relay", daemon=True)

    def __enter__(self) -> LinkRelay:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> LinkRelay:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Drop every connection and end the thread."""
        try:
            self._do(self._end_loop)
        finally:
            self._thread.join()
            self._wake_write.close()  # not the loop's to close: the caller may be about to wake it

    def set_rate(self, uplink_bps: float, downlink_bps: float | None = None) -> None:
        """From now on, also for what is queued; ends a replay.  ``downlink_bps`` stays when left out."""

        def act() -> None:
            self._replay = None
            self._apply(uplink_bps, self._rates[1] if downlink_bps is None else downlink_bps)

        self._do(act)

    def set_delay(self, delay_s: float) -> None:
        """One way, for what leaves from now on."""

        def act() -> None:
            self._up.delay_s = self._down.delay_s = delay_s

        self._do(act)

    def replay(self, uplink: Trace, downlink: Trace | None = None) -> None:
        """Follow recorded rates in real time, from their start and round again, until the next rate."""

        def act() -> None:
            self._replay = _Replay(uplink, downlink, time.monotonic())

        self._do(act)

    def cut(self, outage: Outage = "reset") -> None:
        """``reset``: connections break and new ones are refused.  ``black-hole``: bytes stop, silently."""

        def act() -> None:
            self._outage = outage
            if outage == "reset":
                self._close_all()
                self._close_listeners()
            self._apply(*self._rates)

        self._do(act)

    def heal(self) -> None:
        """End a cut; connections that a black hole only silenced go on where they stopped."""

        def act() -> None:
            self._outage = None
            if not self._listeners:
                self._listen()
            self._apply(*self._rates)

        self._do(act)

    def _do(self, act: Callable[[], None]) -> None:
        if not self._thread.is_alive():
            raise RuntimeError("the relay is not running")
        done: Future[None] = Future()
        self._commands.append((act, done))
        # Awake for another reason it may have done the last command already, and closed its end.
        with contextlib.suppress(BrokenPipeError):
            self._wake_write.send(b"\0")
        done.result()

    def _loop(self) -> None:
        try:
            while True:
                wake_s = self._turn()
                if not self._running:
                    break
                timeout_s = None if wake_s == math.inf else max(wake_s - time.monotonic(), 0.0)
                for key, events in self._selector.select(timeout_s):
                    self._handle(key, events)
        finally:
            for _, done in self._commands:
                done.set_exception(RuntimeError("the relay is not running"))
            self._close_all()
            self._close_listeners()
            self._wake_read.close()
            self._selector.close()

    def _turn(self) -> float:
        """Move what is due; the answer is when to look again, at the latest."""
        while self._commands:
            act, done = self._commands.popleft()
            try:
                act()
            except (OSError, ValueError) as error:
                # A port taken while the link was down, or a rate that is none: the caller's to hear.
                done.set_exception(error)
            else:
                done.set_result(None)
        now_s = time.monotonic()
        wake_s = math.inf
        if self._replay is not None:
            elapsed_s = now_s - self._replay.started_s
            uplink_bps, holds_s = self._replay.uplink.at(elapsed_s)
            downlink_bps, also_s = (self._replay.downlink or self._replay.uplink).at(elapsed_s)
            self._apply(uplink_bps, downlink_bps)
            wake_s = now_s + min(holds_s, also_s)
        for lane in (self._up, self._down):
            for end, piece in lane.due(now_s):
                end.outgoing.append(piece)
                end.outgoing_bytes += len(piece)
            wake_s = min(wake_s, lane.next_s())
        for end in tuple(self._ends):
            # Still there: writing to the other end may just have closed both.
            if end in self._ends and end.outgoing and end.connected:
                self._flush(end)
        for end in self._ends:
            wanted = selectors.EVENT_READ * end.wants_read | selectors.EVENT_WRITE * end.wants_write
            self._watch(end.sock, wanted, end)
        for listener, upstream in zip(self._listeners, self._upstreams, strict=False):
            # A black hole answers no handshake; the nearest to it here is never to accept.
            wanted = selectors.EVENT_READ if self._outage is None else 0
            self._watch(listener, wanted, (listener, upstream))
        return wake_s

    def _handle(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj is self._wake_read:
            self._wake_read.recv(4096)
        elif isinstance(key.data, tuple):
            self._accept(*key.data)
        elif isinstance(key.data, _End) and key.data in self._ends:
            end = key.data
            if events & selectors.EVENT_WRITE and not end.connected:
                if end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._close(end)
                    return
                end.connected = True
            if events & selectors.EVENT_READ:
                self._read(end)

    def _accept(self, listener: socket.socket, upstream: tuple[str, int]) -> None:
        try:
            near, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        far = socket.socket()
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
        device, gateway = _End(near, self._up, True), _End(far, self._down, False)
        device.other, gateway.other = gateway, device
        self._ends |= {device, gateway}
        try:
            far.connect(upstream)
        except BlockingIOError:
            return
        except OSError:
            self._close(gateway)

    def _read(self, end: _End) -> None:
        try:
            data = end.sock.recv(min(_READ_BYTES, end.lane.room_bytes)) if end.wants_read else None
        except BlockingIOError:
            return
        except OSError:
            self._close(end)
            return
        if data is not None:
            end.read_closed = not data
            # Keyed by where the bytes are going, so that they are written without a look-up.
            end.lane.offer(end.other, self._passed_on(end, data), time.monotonic())

    def _passed_on(self, end: _End, data: bytes) -> bytes:
        """What goes on of what was read at this end; for faults."""
        return data

    def _flush(self, end: _End) -> None:
        try:
            while end.outgoing:
                piece = end.outgoing[0]
                if not len(piece):
                    end.sock.shutdown(socket.SHUT_WR)
                    end.finished = True
                    end.outgoing.popleft()
                    continue
                written = end.sock.send(piece[: self._write_bytes])
                end.outgoing_bytes -= written
                if written < len(piece):
                    end.outgoing[0] = piece[written:]
                else:
                    end.outgoing.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._close(end)
            return
        if end.finished and end.other.finished:
            # Both directions ended in order: the last bytes still have to reach the application.
            self._close(end, orderly=True)

    def _watch(self, sock: socket.socket, events: int, data: object = None) -> None:
        known = self._selector.get_map().get(sock)
        if known is None:
            if events:
                self._selector.register(sock, events, data)
        elif not events:
            self._selector.unregister(sock)
        elif known.events != events:
            self._selector.modify(sock, events, data)

    def _close(self, end: _End, orderly: bool = False) -> None:
        for side in (end, end.other):
            self._watch(side.sock, 0)
            if orderly:
                side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ORDERLY)
            side.sock.close()
            self._ends.discard(side)
            side.lane.forget(side.other)

    def _close_all(self) -> None:
        while self._ends:
            self._close(next(iter(self._ends)))

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            self._watch(listener, 0)
            listener.close()
        self._listeners.clear()

    def _listen(self) -> None:
        for port in self.ports:
            listener = socket.socket()
            self._listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Set before listening, because accepted sockets inherit it with their window.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
            listener.setblocking(False)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                self._close_listeners()
                raise
            listener.listen(64)
        # Kept, so that the link heals at the addresses at which it was cut.
        self.ports = tuple(listener.getsockname()[1] for listener in self._listeners)

    def _apply(self, uplink_bps: float, downlink_bps: float) -> None:
        self._rates = (uplink_bps, downlink_bps)
        now_s = time.monotonic()
        for lane, rate_bps in ((self._up, uplink_bps), (self._down, downlink_bps)):
            effective_bps = 0.0 if self._outage == "black-hole" else rate_bps
            if lane.bucket.rate_bps != effective_bps:
                lane.set_rate(effective_bps, now_s)
                lane.queue_bytes = self._queue_bytes(rate_bps)

    def _queue_bytes(self, rate_bps: float) -> int:
        return int(min(max(rate_bps / 8 * self._queue_s, _MIN_QUEUE_BYTES), _MAX_QUEUE_BYTES))

    def _end_loop(self) -> None:
        self._running = False


if __name__ == "__main__":
    # Its own module, because it measures a relay in another process that imports this one.
    from bench.link_check import main

    raise SystemExit(main())
