"""How wary a plan is of the cloud after requests that were late or refused."""

from __future__ import annotations

import math

__all__ = ["Caution"]

_FIRST_BLOCK_MS, _LONGEST_BLOCK_MS = 250.0, 8000.0
_PENALTY_HALF_LIFE_MS = 2000.0
_MOST_DOUBLINGS = 5


class Caution:
    """Delays are charged to remote rows and fade; refusals keep work local for a time.

    Both last longer with every failure in a row, and an answer ends the row.  Requests that were under way
    together and failed together are one failure.
    """

    def __init__(self) -> None:
        self.blocked_until_ms = -math.inf
        self._failures = 0
        self._failed_ms = -math.inf
        self._penalty_ms = self._since_ms = 0.0

    def on_answered(self) -> None:
        self._failures, self._penalty_ms = 0, 0.0

    def on_late(self, late_ms: float, explained: bool, sent_ms: float, now_ms: float) -> None:
        """A request was late; ``explained`` when the uplink's estimate was lowered for it, which is enough
        the first time."""
        if sent_ms < self._failed_ms:
            return
        self._failed_ms = now_ms
        if not explained or self._failures > 0:
            self._penalty_ms = max(self.penalty_ms(now_ms), late_ms)
            self._since_ms = now_ms
        self._failures += 1

    def on_refused(self, retry_after_ms: float, now_ms: float) -> None:
        if now_ms < self.blocked_until_ms:
            # Sent before the refusal that blocks: nothing is since.
            self.blocked_until_ms = max(self.blocked_until_ms, now_ms + retry_after_ms)
            return
        backoff_ms = min(_FIRST_BLOCK_MS * 2.0 ** min(self._failures, _MOST_DOUBLINGS), _LONGEST_BLOCK_MS)
        self._failures += 1
        self.blocked_until_ms = now_ms + max(retry_after_ms, backoff_ms)

    def penalty_ms(self, now_ms: float) -> float:
        """What is added to the wait of every remote row."""
        half_life_ms = _PENALTY_HALF_LIFE_MS * 2.0 ** min(self._failures, _MOST_DOUBLINGS)
        return self._penalty_ms * math.exp2((self._since_ms - now_ms) / half_life_ms)
