"""Connections that hold memory out of sight: which of them to close.

ZeroMQ keeps the frames of an unfinished message where no application code sees them, and bounds neither
their number nor their sum: ``ZMQ_MAXMSGSIZE`` is per frame, high water marks count whole messages.  But the
kernel counts the bytes of every connection, and a connection carries one message after the other.  What has
arrived since the last message came out of it is what an unfinished one holds.

Events in, verdicts out; times are milliseconds of the caller's monotonic clock.  A connection is named by
its file descriptor, which is given to another one as soon as it is closed; ``number`` tells these apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["STRANGER_BYTES", "Parking", "Verdict"]

Verdict = tuple[int, str]
"""A connection to close, and why."""

STRANGER_BYTES = 2**19
"""What a peer may send before it has greeted; a greeting is far smaller."""

_SLACK_BYTES = 2**20


@dataclass(slots=True)
class _Connection:
    """``parked`` bytes came since ``base``, where the last look stood that had heard a message."""

    number: int
    since_ms: float
    known: bool = False
    heard: bool = False
    base: int = 0
    parked: int = 0
    over: bool = False


class Parking:
    """A peer that has greeted may have one message of ``max_message_bytes`` under way; another one a greeting
    within ``greet_ms``, and there may be ``max_strangers`` of these.  All connections together may park
    ``max_parked_bytes``; beyond, those that park most have to go.
    """

    def __init__(
        self,
        max_message_bytes: int,
        max_strangers: int,
        max_parked_bytes: int,
        greet_ms: float = 10_000.0,
    ) -> None:
        self._max_bytes = max_message_bytes + _SLACK_BYTES
        self.limit(max_strangers, max_parked_bytes)
        self._greet_ms = greet_ms
        self._connections: dict[int, _Connection] = {}
        self._numbers = itertools.count()

    def limit(self, max_strangers: int, max_parked_bytes: int) -> None:
        """Other limits from the next look on."""
        self._max_strangers = max_strangers
        self._max_parked_bytes = max_parked_bytes

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def parked_bytes(self) -> int:
        """Of all unfinished messages, as of the last look."""
        return sum(connection.parked for connection in self._connections.values())

    def accepted(self, fd: int, now_ms: float) -> None:
        # A descriptor is reused as soon as it is closed: whatever was known of it is of another connection.
        self._connections.pop(fd, None)
        self._connections[fd] = _Connection(next(self._numbers), now_ms)

    def heard(self, fd: int) -> None:
        """A whole message came out."""
        connection = self._connections.get(fd)
        if connection is not None:
            connection.heard = True

    def greeted(self, fd: int) -> int | None:
        """Its peer is one of ours.  The connection's number, None when it is gone."""
        connection = self._connections.get(fd)
        if connection is None:
            return None
        connection.known = True
        return connection.number

    def parted(self, fd: int, number: int, now_ms: float) -> None:
        """The peer that greeted is a stranger again, with a stranger's time to greet; nothing when its
        connection is gone, whoever has the descriptor now."""
        connection = self._connections.get(fd)
        if connection is not None and connection.number == number:
            connection.known, connection.since_ms = False, now_ms

    def look(self, now_ms: float, arrived: Callable[[int], int | None]) -> list[Verdict]:
        """Which connections to close, each told once.  ``arrived`` gives the bytes of one so far, None when
        it is gone.

        An unfinished message is too large only at the second look in a row: what had arrived whole at the
        first one was read by then.
        """
        verdicts: dict[int, str] = {}
        for fd, connection in list(self._connections.items()):
            total = arrived(fd)
            if total is None:
                del self._connections[fd]
                continue
            if connection.heard:
                connection.heard, connection.base = False, total
            connection.parked = total - connection.base
            why = self._complaint(connection, now_ms)
            if why:
                verdicts[fd] = why
        strangers = [fd for fd, connection in self._connections.items() if not connection.known]
        for fd in strangers[: max(len(strangers) - self._max_strangers, 0)]:
            verdicts.setdefault(fd, f"{len(strangers)} connections have not greeted")
        for fd in verdicts:
            del self._connections[fd]
        verdicts.update(self._shed())
        return list(verdicts.items())

    def _shed(self) -> list[Verdict]:
        """The worst ones go, as many as it takes: others may come faster than one at each look."""
        shed: list[Verdict] = []
        parked = self.parked_bytes
        for fd in sorted(self._connections, key=lambda fd: self._connections[fd].parked, reverse=True):
            if parked <= self._max_parked_bytes:
                break
            shed.append((fd, f"unfinished messages hold {parked} bytes, of which this one most"))
            parked -= self._connections.pop(fd).parked
        return shed

    def _complaint(self, connection: _Connection, now_ms: float) -> str:
        most = self._max_bytes if connection.known else STRANGER_BYTES
        was_over, connection.over = connection.over, connection.parked > most
        if was_over and connection.over:
            return f"an unfinished message of {connection.parked} bytes; at most {most} are accepted"
        if not connection.known and now_ms - connection.since_ms > self._greet_ms:
            return f"no greeting within {self._greet_ms:.0f} ms"
        return ""
