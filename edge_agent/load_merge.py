"""The load reports of all gateways of a cluster as one.  Pure.

Every replica works for every gateway.  What a gateway queues is its own: queues and rates add up.  How
many replicas there are, each of them knows alike: the largest number counts, since one that has just
started may not have met them all.  What a request would wait depends on the gateway that it is sent to:
the wait is that of ours, in which the replicas' work for others is already counted.  The slowdown is the
replicas', so the most recent word of any gateway says it best.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from shared.wire.messages import LoadReport, ModelLoad

__all__ = ["LoadMerge", "MergedLoad"]

_STALE_PERIODS = 3.0
_GATEWAYS_KEPT = 64


class MergedLoad(NamedTuple):
    """``said_ms`` is when our gateway said it, by our clock; after ``fresh_until_ms`` it means nothing."""

    load: ModelLoad
    said_ms: float
    fresh_until_ms: float


@dataclass(frozen=True, slots=True)
class _Heard:
    report: LoadReport
    heard_ms: float
    fresh_until_ms: float


class LoadMerge:
    """The newest report of each gateway.

    A report counts for three of the periods that it names, ``load_period_ms`` where it names none.  Until
    it is told which gateway is ours, the last one heard is.
    """

    def __init__(self, load_period_ms: float) -> None:
        self._load_period_ms = load_period_ms
        self._heard: dict[str, _Heard] = {}
        self._ours: str | None = None

    def on_gateway(self, gateway: str) -> None:
        """Our work goes to this one from now on.  Gateways are named anew at each of their starts."""
        self._ours = gateway

    def on_lost(self) -> None:
        """The link to our gateway is gone, and what it said last with it."""
        ours = self._ours_or_last()
        if ours is not None:
            self._heard.pop(ours, None)
        self._ours = None

    def on_report(self, report: LoadReport, now_ms: float) -> bool:
        """False for one that is not newer than the newest of its gateway; it changes nothing."""
        before = self._heard.pop(report.gateway, None)
        if before is not None and report.sequence <= before.report.sequence:
            self._heard[report.gateway] = before
            return False
        period_ms = report.period_ms or self._load_period_ms
        self._heard[report.gateway] = _Heard(report, now_ms, now_ms + _STALE_PERIODS * period_ms)
        if len(self._heard) > _GATEWAYS_KEPT:
            del self._heard[next(iter(self._heard))]  # the one that was silent for longest
        return True

    def of(self, name: str, accepts: Callable[[ModelLoad], bool], now_ms: float) -> MergedLoad | None:
        """What is known of one network, None while no gateway has a word for it.

        ``accepts`` tells its version from others of the same name.  Gateways that have fallen silent are
        left out, ours excepted: its last word stands, and is no longer fresh.
        """
        ours = self._ours_or_last()
        said: list[tuple[float, ModelLoad]] = []
        own: tuple[_Heard, ModelLoad] | None = None
        for gateway, heard in self._heard.items():
            if gateway != ours and now_ms >= heard.fresh_until_ms:
                continue
            for load in heard.report.models:
                if load.name == name and accepts(load):
                    said.append((heard.heard_ms - load.age_ms, load))
                    if gateway == ours:
                        own = heard, load
        if not said:
            return None
        loads = [load for _, load in said]
        base = loads[0] if own is None else own[1]
        merged = msgspec.structs.replace(
            base,
            ready=max(load.ready for load in loads),
            starting=max(load.starting for load in loads),
            target=max(load.target for load in loads),
            queue_ms=sum(load.queue_ms for load in loads),
            queued=sum(load.queued for load in loads),
            in_flight=sum(load.in_flight for load in loads),
            admitted_per_s=sum(load.admitted_per_s for load in loads),
            refused_per_s=sum(load.refused_per_s for load in loads),
            wait_ms=0.0 if own is None else own[1].wait_ms,
            slowdown=max(said, key=lambda each: each[0])[1].slowdown,
        )
        if own is None:
            return MergedLoad(merged, -math.inf, -math.inf)
        return MergedLoad(merged, own[0].heard_ms, own[0].fresh_until_ms)

    def _ours_or_last(self) -> str | None:
        if self._ours is not None:
            return self._ours
        return next(reversed(self._heard), None)
