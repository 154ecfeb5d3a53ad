"""Uplinks that change: traces of our own making, and what a payload of some size takes on one.  Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.shaping import Trace

__all__ = ["SYNTHETIC", "Clock", "write_trace"]

_MARKOV_MBPS = (1.0, 4.0, 12.0, 40.0)
_MARKOV_STAY = 0.75
_MARKOV_STEP_S = 1.0

_BEYOND_S = 1e-9
"""Where one step ends the next one is asked for."""
_ROUNDING_BITS = 1e-3
"""Bytes that just fit before a dead stretch must not wait for its end because of a sum's last digit."""


def _steps(seconds: float, rng: random.Random) -> Trace:
    """Good, middling, bad and back, each for a while, as indoors from room to room."""
    rates = (40.0, 10.0, 3.0, 1.0, 3.0, 10.0)
    return Trace(tuple((seconds / len(rates), mbps * 1e6) for mbps in rates))


def _markov(seconds: float, rng: random.Random) -> Trace:
    """A rate that stays or moves to its neighbour every second, as on the road."""
    place = 2
    steps = []
    for _ in range(max(round(seconds / _MARKOV_STEP_S), 1)):
        if rng.random() > _MARKOV_STAY:
            place = min(max(place + rng.choice((-1, 1)), 0), len(_MARKOV_MBPS) - 1)
        steps.append((_MARKOV_STEP_S, _MARKOV_MBPS[place] * rng.uniform(0.8, 1.2) * 1e6))
    return Trace(tuple(steps))


def _tunnel(seconds: float, rng: random.Random) -> Trace:
    """A fair link that dies for some seconds twice, going down before and coming up after."""
    shape = ((8.0, 15.0), (1.0, 5.0), (1.0, 1.0), (3.0, 0.0), (1.0, 1.0), (1.0, 5.0))
    once = sum(length for length, _ in shape)
    scale = seconds / (2 * once)
    return Trace(tuple((length * scale, mbps * 1e6) for length, mbps in shape * 2))


SYNTHETIC: dict[str, Callable[[float, random.Random], Trace]] = {
    "steps": _steps,
    "markov": _markov,
    "tunnel": _tunnel,
}
"""By name: a trace of about so many seconds; only ``markov`` depends on the generator."""


def write_trace(trace: Trace, path: Path) -> Path:
    """As ``seconds Mbps`` lines, which :func:`bench.shaping.load_trace` reads back."""
    lines, at_s = [], 0.0
    for length_s, bps in trace.steps:
        lines.append(f"{at_s:.6f} {bps / 1e6:.6f}")
        at_s += length_s
    # The last line lasts as long as the one before it, so the last step's length is said by one more.
    lines.append(f"{at_s:.6f} {trace.steps[-1][1] / 1e6:.6f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class Clock:
    """When bytes that are ready at a moment of a trace have passed it: what only a clairvoyant knows.

    ``seconds`` is how far it looks; what has not passed by then is taken to never pass.
    """

    def __init__(self, trace: Trace, seconds: float) -> None:
        moments, bits = [0.0], [0.0]
        while moments[-1] < seconds:
            bps, left_s = trace.at(moments[-1] + _BEYOND_S)
            moments.append(moments[-1] + left_s + _BEYOND_S)
            bits.append(bits[-1] + bps * (left_s + _BEYOND_S))
        self._moments = np.array(moments)
        self._bits = np.array(bits)

    def passed_s(
        self, ready_s: NDArray[np.float64], payload_bytes: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """When each is through, on an otherwise idle link; ``inf`` for what is not within sight.

        What has no bytes is through when it is ready.
        """
        bits = np.interp(ready_s, self._moments, self._bits) + 8.0 * payload_bytes - _ROUNDING_BITS
        # Over a dead stretch the bits stand still; the first moment at which they are reached is the one.
        after = np.minimum(np.searchsorted(self._bits, bits, side="left"), len(self._bits) - 1)
        before = np.maximum(after - 1, 0)
        gained = self._bits[after] - self._bits[before]
        share = np.where(gained > 0, (bits - self._bits[before]) / np.where(gained > 0, gained, 1.0), 0.0)
        through = self._moments[before] + share * (self._moments[after] - self._moments[before])
        through = np.where(bits > self._bits[-1], np.inf, np.maximum(through, ready_s))
        return np.where(payload_bytes > 0, through, ready_s)
