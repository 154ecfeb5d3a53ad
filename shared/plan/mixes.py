"""A codec for every tensor where several cross a cut: the combinations that can be the fastest.

For a given price of a byte every tensor has a codec that is the cheapest, whatever the others use, and as the
uplink gets slower it moves along the lower hull of its codecs over bytes and milliseconds.  So the
combinations that are optimal for some uplink are as many as the tensors have steps on their hulls, not the
product of their menus: one step of one tensor leads from each to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mixes", "best_mixes"]

_ENCODE_WEIGHTS = (1.0, 10.0)
"""Combinations are taken at the measured times, where they make the plan exact, and for a device that encodes
ten times slower, so that good ones remain when the corrections move."""

_SAME_PRICE = 1e-9
"""Steps at prices closer than this, relatively, are taken together."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Mixes(NamedTuple):
    """``cut[mix]`` indexes the cuts that were asked about, ascending; ``choice[mix, position]`` is the column
    of the menu for the cut's tensor at this position, -1 beyond its last."""

    cut: Ints
    choice: Ints


def best_mixes(costs: Floats, cuts: Sequence[Sequence[int]]) -> Mixes:
    """Every combination of codecs that is optimal for some uplink, each once.

    ``costs[tensor, codec]`` holds bytes, encode ms and decode ms, nan for what cannot be sent; ``cuts`` lists
    the tensors of each cut.  Cuts of fewer than two tensors have no combinations, and none is given for a
    cut with a tensor that has no codec.
    """
    widest = max((len(tensors) for tensors in cuts), default=0)
    found = [np.empty((0, 1 + widest), dtype=np.int64)]
    by_width: dict[int, list[int]] = {}
    for index, tensors in enumerate(cuts):
        if len(tensors) > 1:
            by_width.setdefault(len(tensors), []).append(index)
    if by_width:
        for weight in _ENCODE_WEIGHTS:
            steps, prices = _hulls(costs[:, :, 0], costs[:, :, 1] * weight + costs[:, :, 2])
            for width, members in by_width.items():
                at = np.array([cuts[index] for index in members])
                which, choice = _walks(steps[at], prices[at])
                mixes = np.full((len(which), 1 + widest), -1, dtype=np.int64)
                mixes[:, 0] = np.array(members)[which]
                mixes[:, 1 : 1 + width] = choice
                found.append(mixes)
    distinct = np.unique(np.concatenate(found), axis=0)
    return Mixes(distinct[:, 0], distinct[:, 1:])


def _hulls(nbytes: Floats, ms: Floats) -> tuple[Ints, Floats]:
    """For every tensor the codecs on its lower hull, from the one for the fastest uplink on, and the prices
    in ms per byte at which it goes on to the next, ``inf`` after the last; -1 where it has no codec."""
    unknown = np.isnan(nbytes) | np.isnan(ms)
    without = np.all(unknown, axis=1)
    ms = np.where(without[:, None], 0.0, np.where(unknown, np.inf, ms))
    nbytes = np.where(unknown, 0.0, nbytes)
    every = np.arange(len(nbytes))
    at = np.lexsort((nbytes, ms), axis=1)[:, 0]
    steps, prices = [np.where(without, -1, at)], []
    while True:
        fewer, longer = nbytes[every, at, None] - nbytes, ms - ms[every, at, None]
        price = np.full(nbytes.shape, np.inf)
        np.divide(longer, fewer, out=price, where=(fewer > 0) & np.isfinite(longer))
        at = np.lexsort((nbytes, price), axis=1)[:, 0]
        least = price[every, at]
        prices.append(least)
        if np.isinf(least).all():
            return np.stack(steps, axis=1), np.stack(prices, axis=1)
        at = np.where(np.isinf(least), steps[-1], at)
        steps.append(at)


def _walks(steps: Ints, prices: Floats) -> tuple[Ints, Ints]:
    """The combinations of cuts with equally many tensors: ``steps`` and ``prices`` are [cut, tensor, step].

    Returns the cut of every combination, and its codecs as [combination, tensor].
    """
    cuts, tensors, length = prices.shape
    flat = prices.reshape(cuts, tensors * length)
    order = np.argsort(flat, axis=1, kind="stable")
    price = np.take_along_axis(flat, order, axis=1)
    taken = np.zeros((cuts, tensors * length + 1, tensors), dtype=np.int64)  # steps, after so many moves
    taken[:, 1:] = np.cumsum((order // length)[:, :, None] == np.arange(tensors), axis=1)
    before = np.concatenate([np.zeros((cuts, 1)), price], axis=1)
    after = np.concatenate([price, np.full((cuts, 1), np.inf)], axis=1)
    stays = np.isfinite(before) & (after > before * (1.0 + _SAME_PRICE))
    has_codecs = np.all(steps[:, :, 0] >= 0, axis=1)
    stays &= has_codecs[:, None]
    which, move = np.nonzero(stays)
    return which, steps[which[:, None], np.arange(tensors), taken[which, move]]
