"""Which of several gateways to dial, and when.  Pure; times are ms of one steady clock.

Each device has an order of its own, by chance, so that devices spread over the gateways.  One that failed
comes back after a pause that doubles with each failure; there is no pause before one that did not fail.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Gateways"]

_ALIVE_MS = 1_000.0
"""How long a gateway counts as alive after its load feed brought something."""

_MOST = 64


@dataclass(slots=True)
class _Gateway:
    rank: float
    failures: int = 0
    retry_ms: float = -math.inf
    heard_ms: float = -math.inf


class Gateways:
    """The gateways that are known, by endpoint: those of the configuration, and those that a card named.

    ``min_ms`` and ``max_ms`` bound the pause before a gateway that failed is dialled again.
    """

    def __init__(self, rng: random.Random, min_ms: float, max_ms: float) -> None:
        self._rng = rng
        self._min_ms = min_ms
        self._max_ms = max_ms
        self._known: dict[str, _Gateway] = {}
        self._configured: list[str] = []
        self._learned: list[str] = []

    def __len__(self) -> int:
        return len(self._known)

    def configure(self, endpoints: Iterable[str]) -> None:
        """These are the configuration's, as its names resolve now."""
        self._configured = list(endpoints)[:_MOST]
        self._settle()

    def learn(self, endpoints: Iterable[str]) -> None:
        """These are the cluster's, as a gateway says now."""
        self._learned = list(endpoints)[:_MOST]
        self._settle()

    def next(self, now_ms: float) -> tuple[str, float] | None:
        """The gateway to dial and when: one that is alive; of several the one that failed least; of
        several, the first in this device's order.  None while none is known."""
        if not self._known:
            return None
        due = [endpoint for endpoint, each in self._known.items() if each.retry_ms <= now_ms]
        if due:
            return min(due, key=lambda endpoint: self._worth(self._known[endpoint], now_ms)), now_ms
        endpoint = min(self._known, key=lambda endpoint: self._known[endpoint].retry_ms)
        return endpoint, self._known[endpoint].retry_ms

    @property
    def all_failed(self) -> bool:
        """No gateway is known that could be dialled without a pause."""
        return all(each.failures for each in self._known.values())

    def has_spare(self, endpoint: str) -> bool:
        """Whether there is another one, that did not fail."""
        return any(not each.failures for name, each in self._known.items() if name != endpoint)

    def failures(self, endpoint: str) -> int:
        """How often it failed since it last served this device."""
        known = self._known.get(endpoint)
        return 0 if known is None else known.failures

    def served(self, endpoint: str) -> None:
        """It took this device in."""
        if endpoint in self._known:
            self._known[endpoint].failures = 0
            self._known[endpoint].retry_ms = -math.inf

    def failed(self, endpoint: str, now_ms: float) -> None:
        """It could not be reached, did not answer, or was lost."""
        if endpoint in self._known:
            known = self._known[endpoint]
            known.failures += 1
            known.heard_ms = -math.inf
            pause_ms = min(self._min_ms * 2.0 ** min(known.failures - 1, 32), self._max_ms)
            known.retry_ms = now_ms + pause_ms * self._rng.uniform(0.5, 1.0)

    def heard(self, endpoint: str, now_ms: float) -> None:
        """Its load feed brought something."""
        if endpoint in self._known:
            self._known[endpoint].heard_ms = now_ms

    def _worth(self, gateway: _Gateway, now_ms: float) -> tuple[bool, int, float]:
        return now_ms - gateway.heard_ms > _ALIVE_MS, gateway.failures, gateway.rank

    def _settle(self) -> None:
        wanted = dict.fromkeys([*self._configured, *self._learned])
        self._known = {
            endpoint: self._known.get(endpoint) or _Gateway(self._rng.random()) for endpoint in wanted
        }
