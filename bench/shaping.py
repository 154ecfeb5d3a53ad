"""A slow link as arithmetic: a token bucket on bytes, a delay, a bounded queue.  Time is passed in.

Nothing here reads a clock or a socket, so that a second of traffic is tested in a microsecond, and so
that a thread that wakes up late (``bench/link.py``) still lets every byte leave at the moment at which
the link would have sent it: a :class:`Lane` reckons in departure times, not in the times of its calls.
Times are seconds on any one clock, rates are bits per second, and both may be 0 or ``inf``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

__all__ = ["Lane", "TokenBucket", "Trace", "burst_bytes_at", "load_trace"]

KeyT = TypeVar("KeyT", bound=Hashable)

_PACKET_BYTES = 1500
_MAX_BURST_BYTES = 32_768
_BURST_S = 0.001


def burst_bytes_at(rate_bps: float) -> int:
    """What may leave at once: a millisecond of the link, at least one packet, at most 32 kB.

    Small enough that no payload worth measuring hides in it, large enough that 100 Mbps costs a
    thousand wake-ups a second instead of eight thousand.
    """
    return int(min(max(rate_bps / 8 * _BURST_S, _PACKET_BYTES), _MAX_BURST_BYTES))


class TokenBucket:
    """Bytes in any window [a, b] never exceed ``rate * (b - a) / 8`` plus the largest burst in force.

    The bucket starts full.  Its own time only moves forward.
    """

    def __init__(self, rate_bps: float, now_s: float) -> None:
        self.rate_bps = _checked_rate(rate_bps)
        self.burst_bytes = burst_bytes_at(rate_bps)
        self._level_bytes = float(self.burst_bytes)
        self._as_of_s = now_s

    def set_rate(self, rate_bps: float, now_s: float) -> None:
        """From ``now_s`` on; what was earned until then stays, up to the new burst."""
        self._advance(now_s)
        self.rate_bps = _checked_rate(rate_bps)
        self.burst_bytes = burst_bytes_at(rate_bps)
        self._level_bytes = min(self._level_bytes, self.burst_bytes)

    def ready_at(self, size_bytes: int) -> float:
        """The earliest time at which ``size_bytes`` may leave, at the present rate; ``inf`` at rate 0.

        Raises ValueError for more than a burst: that would never be ready.
        """
        if size_bytes > self.burst_bytes:
            raise ValueError(f"{size_bytes} bytes never fit into a burst of {self.burst_bytes}")
        if not self.rate_bps:
            return math.inf
        missing_bytes = max(size_bytes - self._level_bytes, 0.0)
        return self._as_of_s + missing_bytes * 8 / self.rate_bps

    def take(self, size_bytes: int, at_s: float) -> None:
        """Spend ``size_bytes`` at ``at_s``, which must not be before :meth:`ready_at`."""
        self._advance(at_s)
        # Rounding may leave the level a hair under the size at the very moment that ready_at named.
        self._level_bytes = max(self._level_bytes - size_bytes, 0.0)

    def _advance(self, now_s: float) -> None:
        elapsed_s = now_s - self._as_of_s
        if elapsed_s > 0:
            earned = self.rate_bps / 8 * elapsed_s
            self._level_bytes = min(self.burst_bytes, self._level_bytes + earned)
            self._as_of_s = now_s


class Lane(Generic[KeyT]):
    """One direction of the link, shared by all its connections: first in, first out, none lost.

    Bytes of one ``key`` come out in the order in which they went in, an empty chunk (the end of a
    stream) included.  Every byte leaves at the bucket's pace and arrives ``delay_s`` later.
    """

    def __init__(self, rate_bps: float, delay_s: float, queue_bytes: int, now_s: float) -> None:
        self.bucket = TokenBucket(rate_bps, now_s)
        self.delay_s = delay_s
        self.queue_bytes = queue_bytes
        self._waiting: deque[tuple[float, KeyT, memoryview]] = deque()
        self._waiting_bytes = 0
        self._travelling: deque[tuple[float, KeyT, memoryview]] = deque()
        self._last_due_s = -math.inf

    @property
    def room_bytes(self) -> int:
        """How much may still be offered before the queue is full."""
        return max(self.queue_bytes - self._waiting_bytes, 0)

    def offer(self, key: KeyT, data: bytes, now_s: float) -> None:
        """Queue what has arrived at the near end; the caller has looked at :attr:`room_bytes`."""
        self._waiting.append((now_s, key, memoryview(data)))
        self._waiting_bytes += len(data)

    def set_rate(self, rate_bps: float, now_s: float) -> None:
        self._depart(now_s)
        self.bucket.set_rate(rate_bps, now_s)

    def due(self, now_s: float) -> list[tuple[KeyT, memoryview]]:
        """What has arrived at the far end by now, in order."""
        self._depart(now_s)
        arrived = []
        while self._travelling and self._travelling[0][0] <= now_s:
            _, key, piece = self._travelling.popleft()
            arrived.append((key, piece))
        return arrived

    def next_s(self) -> float:
        """When :meth:`due` will next have work; ``inf`` while nothing moves."""
        arrival_s = self._travelling[0][0] if self._travelling else math.inf
        return min(arrival_s, self._next_departure_s())

    def forget(self, key: KeyT) -> None:
        """Drop what is queued or under way for a connection that is gone."""
        self._waiting = deque(entry for entry in self._waiting if entry[1] != key)
        self._waiting_bytes = sum(len(data) for _, _, data in self._waiting)
        self._travelling = deque(entry for entry in self._travelling if entry[1] != key)

    def _next_departure_s(self) -> float:
        if not self._waiting:
            return math.inf
        arrived_s, _, data = self._waiting[0]
        return max(arrived_s, self.bucket.ready_at(min(len(data), self.bucket.burst_bytes)))

    def _depart(self, now_s: float) -> None:
        while (departure_s := self._next_departure_s()) <= now_s:
            _, key, data = self._waiting[0]
            piece = data[: self.bucket.burst_bytes]
            self.bucket.take(len(piece), departure_s)
            self._waiting_bytes -= len(piece)
            if len(piece) == len(data):
                self._waiting.popleft()
            else:
                self._waiting[0] = (departure_s, key, data[len(piece) :])
            # A shorter delay than before must not let later bytes overtake earlier ones.
            self._last_due_s = max(self._last_due_s, departure_s + self.delay_s)
            self._travelling.append((self._last_due_s, key, piece))


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded rate: ``(seconds, bps)`` steps that follow each other and then start again."""

    steps: tuple[tuple[float, float], ...]

    @property
    def duration_s(self) -> float:
        return sum(seconds for seconds, _ in self.steps)

    def at(self, elapsed_s: float) -> tuple[float, float]:
        """The rate at a moment of the replay, and how many seconds it still holds."""
        left_s = math.fmod(elapsed_s, self.duration_s)
        for seconds, rate_bps in self.steps:
            if left_s < seconds:
                return rate_bps, seconds - left_s
            left_s -= seconds
        return self.steps[0][1], self.steps[0][0]


def load_trace(path: str | Path, bin_s: float = 0.1) -> Trace:
    """Read a recorded rate from either of two forms of text.

    Mahimahi (Netravali et al., USENIX ATC 2015): a line is a millisecond at which one 1500-byte packet
    could leave; they are counted over bins of ``bin_s``.  Or a line is ``seconds Mbps``: from that
    second until the next line's, which for the last line is as long as the line before it.  Empty
    lines and lines that start with # are passed over.  Raises ValueError with the line's number.
    """
    rows: list[tuple[float, ...]] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            row = tuple(float(field) for field in fields)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not a number in {line!r}") from error
        if len(row) > 2 or (rows and (len(row) != len(rows[0]) or row[0] < rows[-1][0])):
            raise ValueError(f"{path}:{number}: expected rising milliseconds, or rising `seconds Mbps`")
        if any(not math.isfinite(value) or value < 0 for value in row):
            raise ValueError(f"{path}:{number}: negative or endless in {line!r}")
        rows.append(row)
    if not rows or (len(rows[0]) == 2 and len(rows) < 2):
        raise ValueError(f"{path}: too short for a recorded rate")
    return _from_seconds(rows) if len(rows[0]) == 2 else _from_packets([row[0] for row in rows], bin_s)


def _from_seconds(rows: list[tuple[float, ...]]) -> Trace:
    starts = [row[0] for row in rows]
    starts.append(2 * starts[-1] - starts[-2])
    lengths = [after - before for before, after in pairwise(starts)]
    steps = [(length, mbps * 1e6) for length, (_, mbps) in zip(lengths, rows, strict=True) if length > 0]
    if not steps:
        raise ValueError("every line of the recorded rate names the same second")
    return Trace(tuple(steps))


def _from_packets(milliseconds: list[float], bin_s: float) -> Trace:
    counts = [0] * (int(milliseconds[-1] / 1000 / bin_s) + 1)
    for moment_ms in milliseconds:
        counts[int(moment_ms / 1000 / bin_s)] += 1
    return Trace(tuple((bin_s, count * _PACKET_BYTES * 8 / bin_s) for count in counts))


def _checked_rate(rate_bps: float) -> float:
    if not rate_bps >= 0:
        raise ValueError(f"a rate is 0 or more, not {rate_bps}")
    return rate_bps
