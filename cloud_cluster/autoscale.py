"""How many replicas a network needs: a pure policy with the time passed in, and the face that Serve calls.

Replicas are wanted for the work that arrives, refused work included, so that they are there before a queue
is: the fewest for which the predicted wait keeps its target.  A wait that is longer than the target all the
same asks for more, at most twice as many at a time.  More are started as soon as that has been so for
``upscale_delay_s``; fewer only after ``downscale_delay_s`` without a need for more than those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from shared.config import AutoscaleConfig

__all__ = [
    "Load",
    "ReplicaStats",
    "ServePolicy",
    "Trend",
    "desired_replicas",
    "load_of",
    "needed_replicas",
    "predicted_wait_ms",
]

_MOST_GROWTH = 2.0


@dataclass(frozen=True, slots=True)
class Load:
    """What one network's ``ready`` replicas have to do, over the last second or two.

    ``offered`` is how many replicas the arriving work would keep busy, refused work included.
    ``request_ms`` is how long a request occupies a replica, ``wait_ms`` what one that arrives now waits.
    """

    ready: int
    offered: float
    request_ms: float
    wait_ms: float


class ReplicaStats(Protocol):
    """What a replica records for the policy, as a flat mapping of these names to numbers.

    ``busy`` is the share of the time that the replica computed, ``finished_per_s`` its requests.
    ``arriving_per_s`` and ``wait_ms`` are what the gateways see of the whole network, the former with
    refused requests: every replica records the same.
    """

    busy: float
    finished_per_s: float
    arriving_per_s: float
    wait_ms: float


@dataclass(frozen=True, slots=True)
class Trend:
    """Since when the need has been above (``up``) or below the target, and the most needed meanwhile."""

    up: bool
    since_s: float
    most: int


def load_of(stats: Iterable[Mapping[str, float]]) -> Load | None:
    """The load that the replicas' records amount to; None when there are none, which is not no load."""
    replicas = list(stats)
    if not replicas:
        return None
    busy = sum(replica["busy"] for replica in replicas)
    finished_per_s = sum(replica["finished_per_s"] for replica in replicas)
    arriving_per_s = max(replica["arriving_per_s"] for replica in replicas)
    # A replica's busy time counts what batching saves and what a slow machine costs; work that arrives is
    # taken to be like the work that was finished.
    request_s = busy / finished_per_s if finished_per_s else 0.0
    return Load(
        ready=len(replicas),
        offered=arriving_per_s * request_s if request_s else busy,
        request_ms=request_s * 1e3,
        wait_ms=max(replica["wait_ms"] for replica in replicas),
    )


def predicted_wait_ms(offered: float, replicas: int, request_ms: float) -> float:
    """The mean wait when random arrivals keep ``offered`` of the replicas busy; infinite when they cannot.

    Sakasegawa's approximation for M/M/c (1977), exact for one replica.
    """
    busy = offered / replicas
    if busy >= 1:
        return math.inf
    return float(request_ms * busy ** (math.sqrt(2.0 * (replicas + 1)) - 1.0) / (replicas * (1.0 - busy)))


def needed_replicas(load: Load, target_queue_ms: float, most: int) -> int:
    """The fewest replicas that keep the wait at its target, at most ``most``; 0 without work.

    Never fewer for a longer wait, nor for more work.
    """
    if load.offered <= 0 and load.wait_ms <= 0:
        return 0
    needed = min(max(1, math.floor(load.offered) + 1), most)
    while needed < most and predicted_wait_ms(load.offered, needed, load.request_ms) > target_queue_ms:
        needed += 1
    if load.wait_ms > target_queue_ms:
        growth = min(load.wait_ms / target_queue_ms, _MOST_GROWTH)
        needed = max(needed, math.ceil(load.ready * growth))
    return min(needed, most)


def desired_replicas(
    load: Load | None, target: int, config: AutoscaleConfig, trend: Trend | None, now_s: float
) -> tuple[int, Trend | None]:
    """The number of replicas to have, and what to hand in next time; ``target`` is the number intended now.

    An unknown load changes nothing.
    """
    bounded = min(max(target, config.min_replicas), config.max_replicas)
    if load is None or bounded != target:
        return bounded, None
    need = max(needed_replicas(load, config.target_queue_ms, config.max_replicas), config.min_replicas)
    if need == target:
        return target, None
    up = need > target
    if trend is None or trend.up is not up:
        trend = Trend(up, now_s, need)
    trend = Trend(up, trend.since_s, max(trend.most, need))
    delay_s = config.upscale_delay_s if up else config.downscale_delay_s
    if now_s - trend.since_s < delay_s:
        return target, trend
    return (need if up else trend.most), None


class ServePolicy:
    """What Ray Serve calls, ten times a second or so, in its controller.

    Serve's own delays must be 0: the delays here are those of ``AutoscaleConfig``, whose keys the
    constructor takes.
    """

    def __init__(self, **config: Any) -> None:
        self._config = AutoscaleConfig.model_validate(config)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """``context`` is a ray.serve.config.AutoscalingContext; returns the target and what to remember."""
        kept = context.policy_state.get("trend")
        desired, trend = desired_replicas(
            load_of(_by_replica(context.aggregated_metrics)),
            context.target_num_replicas,
            self._config,
            Trend(**kept) if kept else None,
            context.current_time,
        )
        return desired, {"trend": asdict(trend)} if trend else {}


def _by_replica(metrics: Mapping[str, Mapping[Any, float]]) -> list[dict[str, float]]:
    """From Serve's numbers by name and replica to the replicas that have recorded all of them."""
    names = tuple(ReplicaStats.__annotations__)
    columns = [metrics.get(name, {}) for name in names]
    everywhere = set(columns[0]).intersection(*columns[1:])
    return [
        {name: column[replica] for name, column in zip(names, columns, strict=True)} for replica in everywhere
    ]
