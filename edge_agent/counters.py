"""What became of the requests of one network: counted since the start, and timed over the last of them."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import Counter, deque
from typing import Any

from edge_agent.result import Result, Where
from shared.errors import SutureError

__all__ = ["BOUNDS_MS", "ModelCounters"]

BOUNDS_MS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
"""Upper bounds of the buckets that all latencies are counted in; the last bucket has none."""

_KEPT = 256
"""Requests that latencies and stages are taken over: ten seconds at 25 frames a second."""


class ModelCounters:
    """Every request is counted once, in ``where`` or in ``errors``.

    ``switches`` counts answers that came by another cut or codec than the answer before; ``energy_mj`` and
    ``uplink_bytes`` are sums over answers.  ``buckets`` counts answers by :data:`BOUNDS_MS`, in the first
    bucket whose bound each keeps, and ``latency_sum_ms`` is the sum of them all.
    """

    def __init__(self) -> None:
        self.where: Counter[Where] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.switches = 0
        self.uplink_bytes = 0
        self.energy_mj = 0.0
        self.latency_sum_ms = 0.0
        self.buckets = [0] * (len(BOUNDS_MS) + 1)
        self._plan: tuple[int, str, str] | None = None
        self._latencies_ms: deque[float] = deque(maxlen=_KEPT)
        self._stages: deque[dict[str, float]] = deque(maxlen=_KEPT)

    @property
    def requests(self) -> int:
        return self.where.total() + self.errors.total()

    def on_result(self, result: Result) -> None:
        self.where[result.where] += 1
        if result.fallback is not None:
            self.fallbacks[result.fallback] += 1
        plan = result.cut_index, result.cut, result.codec
        if self._plan is not None and plan != self._plan:
            self.switches += 1
        self._plan = plan
        self.uplink_bytes += result.uplink_bytes
        self.energy_mj += result.energy_mj or 0.0
        self.latency_sum_ms += result.latency_ms
        self.buckets[bisect_left(BOUNDS_MS, result.latency_ms)] += 1
        self._latencies_ms.append(result.latency_ms)
        self._stages.append(dict(result.breakdown))

    def on_error(self, error: SutureError) -> None:
        self.errors[type(error).__name__] += 1

    def latency_ms(self, share: float) -> float | None:
        """The latency that ``share`` of the last answers kept within; None before the first."""
        if not self._latencies_ms:
            return None
        ranked = sorted(self._latencies_ms)
        return ranked[min(int(share * len(ranked)), len(ranked) - 1)]

    def stages_ms(self) -> dict[str, float]:
        """The mean of every stage over the last answers, 0 for those that had none of it; in order."""
        names = dict.fromkeys(name for stages in self._stages for name in stages)
        return {name: statistics.fmean(stages.get(name, 0.0) for stages in self._stages) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "requests": self.requests,
            "where": {str(where): self.where[where] for where in Where},
            "fallbacks": dict(self.fallbacks),
            "errors": dict(self.errors),
            "switches": self.switches,
            "uplink_bytes": self.uplink_bytes,
            "energy_mj": self.energy_mj,
            "latency_sum_ms": self.latency_sum_ms,
            "latency_buckets": list(self.buckets),
            "latency_p50_ms": self.latency_ms(0.5),
            "latency_p95_ms": self.latency_ms(0.95),
            "stages_ms": self.stages_ms(),
        }
