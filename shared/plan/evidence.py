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

Both are a total that is distributed as that of exponential variables, so that from a bound and the number of
answers behind it follows what more answers would show: whether it is still worth asking for them, and how
many it would take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

__all__ = [
    "Agreement",
    "agreement_bounds",
    "answers_needed",
    "erlang_quantile",
    "is_hopeless",
    "similarity_bounds",
]

Agreement = Literal["top1", "cosine"]
"""``top1``: the share of samples whose most likely class stays the same.  ``cosine``: the mean cosine
similarity of the outputs, that of the worst output where there are several."""

_SURE = 0.99
"""Confidence of the lower bound of an agreement, at each look at the data.  There are up to five looks, so
that a pair that should not pass does so in at most one of twenty."""
_FUTILE = 0.95
"""Confidence of the upper bound, and of what more answers would not show, beyond which none are asked."""

_MOST_EVENTS = 10**6
_EXACT_EVENTS = 256
"""Beyond so many an approximation, which is then within 1e-4, is as good as what it stands for."""

_MOST_HEADROOM = 1000.0
_USED_SHARE = 0.25


def agreement_bounds(headrooms: Sequence[float]) -> tuple[float, float]:
    """Least and greatest share of answers that keep their class, from the headroom of some; all are 0 or
    more.  Raises ValueError without any."""
    count = len(headrooms)
    if not count:
        raise ValueError("no answer was compared")
    ordered = sorted(min(headroom, _MOST_HEADROOM) for headroom in headrooms)
    used = _events("top1", count)
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


def is_hopeless(agreement: Agreement, at_least: float, count: int, enough: float, most: int) -> bool:
    """Whether ``most`` answers would hardly show what ``count`` did not: that ``enough`` is reached.

    They would with a probability below 5%, even if what changes answers were as rare as ``count`` of them
    allow with a confidence of 95%.  A pair that is given up for it is never one that should not pass.
    """
    if count >= most:
        return at_least < enough
    if enough >= 1.0:
        return True
    in_all = _events(agreement, most)
    _, rarest = _mean_and_least(agreement, at_least, count)
    if agreement == "top1":
        luckiest = in_all / erlang_quantile(in_all, _FUTILE)
    else:
        luckiest = erlang_quantile(in_all, 1 - _FUTILE) / in_all
    return rarest * luckiest * _bound_per_mean(agreement, in_all) > 1.0 - enough


def answers_needed(agreement: Agreement, at_least: float, count: int, enough: float) -> int | None:
    """About how many answers it may take to show ``enough``, to two digits; None when no number would.

    All are taken to be as the ``count`` that showed ``at_least``; or, where such would never do but ``count``
    are too few to say, as good as these allow with a confidence of 95%.
    """
    mean, rarest = _mean_and_least(agreement, at_least, count)
    for each, most_events, least in ((mean, _MOST_EVENTS, count), (rarest, _EXACT_EVENTS, 2 * count)):
        events = _events_needed(agreement, each, 1.0 - enough, most_events)
        if events is not None:
            needed = max(least, events if agreement == "cosine" else round(events / _USED_SHARE))
            digit: int = 10 ** max(0, len(str(needed)) - 2)
            return -(-needed // digit) * digit
    return None


def _events_needed(agreement: Agreement, mean: float, bound: float, most: int) -> int | None:
    """The fewest events that show a mean to be at most ``bound``; None when more than ``most``."""
    if mean * _bound_per_mean(agreement, most) > bound:
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        enough = mean * _bound_per_mean(agreement, middle) <= bound
        low, high = (low, middle) if enough else (middle, high)
    return high


def _mean_and_least(agreement: Agreement, at_least: float, count: int) -> tuple[float, float]:
    """The share of changes, or the mean of 1 - cosine, behind a bound, and the least that it may be."""
    events = _events(agreement, count)
    mean = (1.0 - at_least) / _bound_per_mean(agreement, events)
    if agreement == "top1":  # events over a total, which is less where the total is more
        return mean, mean * erlang_quantile(events, 1 - _FUTILE) / events
    return mean, mean * events / erlang_quantile(events, _FUTILE)


def _events(agreement: Agreement, count: int) -> int:
    """How many exponential variables so many answers are worth."""
    return count if agreement == "cosine" else max(1, int(count * _USED_SHARE))


def _bound_per_mean(agreement: Agreement, events: int) -> float:
    """The greatest share of changes, or mean of 1 - cosine, that so many events allow, over their own."""
    if agreement == "top1":
        return erlang_quantile(events, _SURE) / events
    return events / erlang_quantile(events, 1 - _SURE)


@lru_cache(maxsize=512)
def erlang_quantile(events: int, share: float) -> float:
    """The value below which the sum of ``events`` exponential variables of rate 1 lies with probability
    ``share``, between 0 and 1."""
    if events > _EXACT_EVENTS:  # Wilson and Hilferty, PNAS 17, 1931
        spread = 1.0 / (9.0 * events)
        return events * (1.0 - spread + NormalDist().inv_cdf(share) * math.sqrt(spread)) ** 3
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
