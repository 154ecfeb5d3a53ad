"""How much longer than predicted the device may take: what its deadline guard has to reckon with.  Pure."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Spread"]

_KEPT, _FEWEST = 32, 8
_SHARE = 0.9
_MOST = 4.0
_TOO_SHORT_MS = 0.5
"""Computations that were predicted shorter measure the scheduler; the guard's own slack is for those."""


class Spread:
    """Of the last computations nine in ten took at most :attr:`factor` times what was predicted for them.

    1 while few are known, and never less.  Predictions follow a device that is slower for a while; this
    tells how unsteady it is besides, on a processor that others use too.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self._ratios: deque[float] = deque(maxlen=_KEPT)

    def add(self, measured_ms: float, predicted_ms: float) -> None:
        if predicted_ms < _TOO_SHORT_MS:
            return
        self._ratios.append(measured_ms / predicted_ms)
        if len(self._ratios) >= _FEWEST:
            ranked = sorted(self._ratios)
            self.factor = min(max(ranked[math.ceil(_SHARE * len(ranked)) - 1], 1.0), _MOST)
