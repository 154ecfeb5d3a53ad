"""Who sends what is no message: a few are answered, then the peer is out for a while.

Events in, verdicts out; times are milliseconds of the caller's monotonic clock.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Strikes"]


class Strikes:
    """``limit`` malformed messages within ``window_ms`` put a peer out for ``ban_ms``.

    Of at most ``max_peers`` something is remembered, in at most ``limit`` numbers each: peers that make up
    new names push out the oldest ones and gain nothing, since each starts at zero.
    """

    def __init__(
        self,
        limit: int = 8,
        window_ms: float = 10_000.0,
        ban_ms: float = 10_000.0,
        max_peers: int = 1024,
    ) -> None:
        self.limit = limit
        self.window_ms = window_ms
        self.ban_ms = ban_ms
        self._max_peers = max_peers
        self._struck: dict[bytes, deque[float]] = {}
        self._out_until_ms: dict[bytes, float] = {}

    def __len__(self) -> int:
        """Peers of which something is remembered."""
        return len(self._struck) + len(self._out_until_ms)

    def strike(self, peer: bytes, now_ms: float) -> bool:
        """Count one malformed message; True when it is the one that puts the peer out."""
        if self.is_out(peer, now_ms):
            return False
        times = self._struck.setdefault(peer, deque(maxlen=self.limit))
        times.append(now_ms)
        if len(times) == self.limit and now_ms - times[0] <= self.window_ms:
            del self._struck[peer]
            self._out_until_ms[peer] = now_ms + self.ban_ms
            _trim(self._out_until_ms, self._max_peers)
            return True
        _trim(self._struck, self._max_peers)
        return False

    def is_out(self, peer: bytes, now_ms: float) -> bool:
        """Whether what this peer sends is to be dropped unread."""
        if not self._out_until_ms:
            return False
        until_ms = self._out_until_ms.get(peer)
        if until_ms is None:
            return False
        if now_ms < until_ms:
            return True
        del self._out_until_ms[peer]
        return False


def _trim(remembered: dict[bytes, deque[float]] | dict[bytes, float], most: int) -> None:
    while len(remembered) > most:
        del remembered[next(iter(remembered))]
