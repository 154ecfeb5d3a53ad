"""What a replica knows of the gateways: where they are, and what they have to do for its network.  Pure.

Gateways say it when they are asked, as :class:`GatewayReport`; times are seconds of the caller's monotonic
clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

__all__ = ["ClusterView", "Demand", "GatewayReport", "WorkRate"]

_GONE_AFTER_S = 3.0


class Demand(TypedDict):
    """Of one network at one gateway: requests since the start, and the wait of one that arrives now.

    ``held_past`` are digests that a newer one has replaced, that devices hold all the same, and that only one
    replica is left of.
    """

    admitted: int
    refused: int
    wait_ms: float
    held_past: list[str]


class GatewayReport(TypedDict):
    """One gateway's answer; ``models`` by the label of their configuration."""

    gateway: str
    device_endpoint: str
    replica_endpoint: str
    load_endpoint: str
    models: dict[str, Demand]


@dataclass(slots=True)
class _Seen:
    report: GatewayReport
    at_s: float
    arriving_per_s: float = 0.0


class ClusterView:
    """Every gateway that has answered lately, as seen by the replicas of ``label``."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._seen: dict[str, _Seen] = {}

    def update(self, reports: Iterable[GatewayReport], now_s: float) -> None:
        """The gateways' answers to one question.

        One that does not answer counts as gone after some seconds, if others do: when none does it is the
        asking that has failed.
        """
        for report in reports:
            before = self._seen.get(report["gateway"])
            seen = _Seen(report, now_s)
            if before is not None and now_s > before.at_s:
                arrived = _arrived(report, self._label) - _arrived(before.report, self._label)
                seen.arriving_per_s = max(arrived, 0) / (now_s - before.at_s)
            self._seen[report["gateway"]] = seen
        newest_s = max((seen.at_s for seen in self._seen.values()), default=0.0)
        self._seen = {
            name: seen for name, seen in self._seen.items() if newest_s - seen.at_s <= _GONE_AFTER_S
        }

    @property
    def reports(self) -> list[GatewayReport]:
        return [seen.report for seen in self._seen.values()]

    @property
    def replica_endpoints(self) -> list[str]:
        """Where replicas connect; a gateway that has started anew at its old place is one place."""
        return list(dict.fromkeys(report["replica_endpoint"] for report in self.reports))

    def arriving_per_s(self) -> float:
        """Requests for the network at all gateways, refused ones included."""
        return sum(seen.arriving_per_s for seen in self._seen.values())

    def leans_on(self, digest: str) -> bool:
        """Whether devices would be without the cloud if the replica of this digest left."""
        demands = (report["models"].get(self._label) for report in self.reports)
        return any(digest in demand["held_past"] for demand in demands if demand)

    def wait_ms(self) -> float:
        """The longest wait at any gateway."""
        demands = (report["models"].get(self._label) for report in self.reports)
        return max((demand["wait_ms"] for demand in demands if demand), default=0.0)


class WorkRate:
    """How busy a replica was and how much it finished, between two looks at its totals."""

    def __init__(self, now_s: float) -> None:
        self._before = (now_s, 0.0, 0)

    def take(self, busy_ms: float, finished: int, now_s: float) -> tuple[float, float]:
        """The busy share and the requests finished per second since the last call, from the totals now."""
        before_s, before_ms, before_finished = self._before
        self._before = (now_s, busy_ms, finished)
        passed_s = max(now_s - before_s, 1e-3)
        return (busy_ms - before_ms) / 1e3 / passed_s, (finished - before_finished) / passed_s


def _arrived(report: GatewayReport, label: str) -> int:
    demand = report["models"].get(label)
    return demand["admitted"] + demand["refused"] if demand else 0
