"""When a device acts on news that all devices hear at once.  Pure.

A thousand devices that hear of an idle cloud in the same tenth of a second, and all go there, find a queue;
the next report says so, and all go home.  The report is never wrong and always late: the time from a
decision to its effect on the queue is longer than the queue takes to fill.  What keeps such a crowd from
swinging is that few move at a time, fewer the less there is to gain (pairwise comparison dynamics:
M. Smith, Transportation Science 18(3), 1984; W. Sandholm, Population Games and Evolutionary Dynamics,
2010, chapter 5): so every device has moments of its own at which it may act on the reported load.

Many replicas behind one queue warn late: the wait stays near nothing until they are busy to within about
one over the square root of their number (Halfin, Whitt, Operations Research 29(3), 1981), and then grows as
many times more steeply.  The steeper the answer, the smaller the steps have to be: with c replicas the root
of c times fewer devices move at a time.
"""

from __future__ import annotations

import math
import random

__all__ = ["Patience"]


class Patience:
    """Moments that come at random, ``mean_ms`` apart on average; 0 is always.

    At each of them a change that would save the share ``gain`` is made with probability
    ``gain / full_gain``, less by the root of the replicas: with one replica it takes ``mean_ms`` on average
    where the change saves as much as that, and longer where it saves less.  Equal seeds and equal questions
    have equal answers.
    """

    def __init__(self, mean_ms: float, seed: int | None = None, full_gain: float = 0.5) -> None:
        self._mean_ms = mean_ms
        self._full_gain = full_gain
        self._draw = random.Random(seed)
        self._next_ms: float | None = None

    def next_ms(self, now_ms: float) -> float:
        """When the next moment comes, by the clock of ``now_ms``; may have passed."""
        if self._next_ms is None:
            self._next_ms = now_ms + self._wait_ms()
        return self._next_ms

    def allows(self, gain: float, now_ms: float, replicas: int = 1) -> bool:
        """Whether one of the moments since the last question was one to act at.

        ``replicas`` share the queue that the news is about.
        """
        acts = self._mean_ms <= 0
        while not acts and self.next_ms(now_ms) <= now_ms:
            self._next_ms = self.next_ms(now_ms) + self._wait_ms()
            acts = self._draw.random() * self._full_gain * math.sqrt(replicas) < gain
        return acts

    def passes(self, now_ms: float) -> None:
        """Moments up to now went by with nothing to act on."""
        if self._mean_ms > 0 and self.next_ms(now_ms) <= now_ms:
            self._next_ms = now_ms + self._wait_ms()

    def _wait_ms(self) -> float:
        return self._draw.expovariate(1.0 / self._mean_ms) if self._mean_ms > 0 else 0.0
