"""What some few answers show about all others: bounds on how often a lossy codec changes the answer.

That none of 16 answers changed shows only that fewer than one in four changes.  More lies in how far each
answer was from changing.  An answer's *headroom* is how many times larger the very same error of the scores
would have to be for another class to win; the class has changed where it is below 1.  For errors that are
small against the distances between the classes, the share of answers that change grows as the error does,
so that headrooms are distributed exponentially near zero, and the share sought is the rate of that
distribution.  Its bounds are those of a life test which is ended at the r-th failure (Epstein and Sobel,
Life Testing, JASA 48, 1953): ``2 rate T`` is distributed as chi-squared with 2r degrees of freedom, where T
is the total headroom up to that failure.  A quarter of the answers is used, above which the share grows more
slowly; and the share that was seen to change is never believed to be too high.

Outputs that are no classes are judged by the mean of 1 - cosine, which is bounded as the mean of an
exponential distribution is: too wide rather than too narrow for anything that varies less than its mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["agreement_bounds", "erlang_quantile", "similarity_bounds"]

_SURE = 0.99
"""Confidence of the lower bound of an agreement, at each look at the data.  There are up to five looks, so
that a pair that should not pass does so in at most one of twenty."""
_FUTILE = 0.95
"""Confidence of the upper bound, beyond which no more inputs are asked."""

_MOST_HEADROOM = 1000.0
_USED_SHARE = 0.25


def agreement_bounds(headrooms: Sequence[float]) -> tuple[float, float]:
    """Least and greatest share of answers that keep their class, from the headroom of some; all are 0 or
    more.  Raises ValueError without any."""
    count = len(headrooms)
    if not count:
        raise ValueError("no answer was compared")
    ordered = sorted(min(headroom, _MOST_HEADROOM) for headroom in headrooms)
    used = max(1, int(count * _USED_SHARE))
    total = sum(ordered[:used]) + (count - used) * ordered[used - 1]
    seen = sum(headroom >= 1.0 for headroom in ordered) / count
    if not total:
        return 0.0, float(seen > 0)
    most, least = (erlang_quantile(used, share) / total for share in (_SURE, 1 - _FUTILE))
    return max(0.0, min(seen, 1.0 - most)), max(seen, 1.0 - least)


def similarity_bounds(cosines: Sequence[float]) -> tuple[float, float]:
    """Least and greatest mean of which these cosines, of -1 to 1, may be a sample.  Raises ValueError
    without any."""
    count = len(cosines)
    if not count:
        raise ValueError("no answer was compared")
    missing = sum(max(0.0, 1.0 - cosine) for cosine in cosines)
    most, least = (missing / erlang_quantile(count, share) for share in (1 - _SURE, _FUTILE))
    return max(-1.0, 1.0 - most), 1.0 - least


def erlang_quantile(events: int, share: float) -> float:
    """The value below which the sum of ``events`` exponential variables of rate 1 lies with probability
    ``share``, between 0 and 1."""
    low, high = 0.0, 1.0
    while _below(events, high) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if _below(events, middle) < share:
            low = middle
        else:
            high = middle
    return high


def _below(events: int, value: float) -> float:
    """As many events have happened by then in a Poisson process of rate 1."""
    term = fewer = math.exp(-value)
    for number in range(1, events):
        term *= value / number
        fewer += term
    return 1.0 - fewer
