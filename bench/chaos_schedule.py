"""What fails when: a seeded list of faults on the link and on the processes of the cloud.  Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KINDS", "Fault", "arrivals", "schedule"]

_CALM = 0.08
"""Of the whole time, at the start, nothing fails."""

_LASTS = 0.45
"""Of its turn, a fault lasts so long; the rest is for getting well again."""

KINDS: Mapping[str, float] = {
    "refuse": 1.0,
    "blackhole": 1.0,
    "reset": 0.7,
    "half_close": 0.7,
    "half_open": 1.0,
    "latency": 1.0,
    "rate": 1.0,
    "slice": 1.0,
    "corrupt": 1.0,
    "drop_after": 0.7,
    "replica_stop": 1.0,
    "replica_kill": 1.0,
    "gateway_stop": 1.0,
    "gateway_kill": 3.0,
    "outage": 3.0,
    "cloud_stop": 1.5,
}
"""Every fault, and how long its turn is in comparison.

Link: see :class:`bench.gate.Gate`; an ``outage`` is a long black hole.  Processes: SIGSTOP and SIGKILL of
all replicas or one, and of the gateway; ``cloud_stop`` is the end of everything in the cloud, and the last.
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """``parameters`` are those of the gate's method, where it is one of the link."""

    kind: str
    at_s: float
    lasts_s: float
    parameters: dict[str, Any] = field(default_factory=dict)


def schedule(seconds: float, seed: int) -> list[Fault]:
    """Every kind once, in an order by chance, each with time to recover from.  Equal seeds, equal faults."""
    chance = random.Random(seed)
    kinds = [kind for kind in KINDS if kind != "cloud_stop"]
    chance.shuffle(kinds)
    at_s = seconds * _CALM
    unit_s = (seconds - at_s) / sum(KINDS.values())
    faults = []
    for kind in [*kinds, "cloud_stop"]:
        turn_s = KINDS[kind] * unit_s
        share = 1.0 if kind == "cloud_stop" else _LASTS
        faults.append(Fault(kind, at_s, turn_s * share, _parameters(kind, chance)))
        at_s += turn_s
    return faults


def arrivals(seconds: float, per_s: float, seed: int) -> Iterator[float]:
    """When requests come: at random, independent of each other and of any answer (an open loop)."""
    chance = random.Random(seed)
    at_s = chance.expovariate(per_s)
    while at_s < seconds:
        yield at_s
        at_s += chance.expovariate(per_s)


def _parameters(kind: str, chance: random.Random) -> dict[str, Any]:
    side = chance.choice(("device", "gateway"))
    if kind in ("half_close", "half_open"):
        return {"towards": side}
    if kind == "drop_after":
        return {"nbytes": round(math.exp(chance.uniform(0.0, math.log(100_000)))), "towards": side}
    if kind == "latency":
        return {"delay_s": round(chance.uniform(0.03, 0.2), 3)}
    if kind == "rate":
        return {"bps": round(chance.uniform(0.2e6, 2e6))}
    if kind == "slice":
        return {"piece_bytes": chance.choice((1, 7, 64))}
    if kind == "corrupt":
        return {"every_bytes": round(chance.uniform(2_000, 50_000)), "seed": chance.randrange(2**31)}
    return {}
