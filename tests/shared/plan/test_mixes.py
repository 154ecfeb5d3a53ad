"""Mixes of codecs, against the best codec of every tensor found by trying all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.plan.mixes import best_mixes

COST = st.one_of(
    st.just((np.nan, np.nan, np.nan)),
    st.tuples(st.integers(1, 6).map(float), st.integers(0, 4).map(float), st.integers(0, 4).map(float)),
    st.tuples(st.floats(1, 1e6), st.floats(0, 10), st.floats(0, 10)),
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[NDArray[np.float64], list[list[int]]]:
    """Costs [tensor, codec, 3], in part not measured, with many ties; and the tensors of some cuts."""
    tensors, codecs = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    costs = np.array(
        [[draw(COST) for _ in range(codecs)] for _ in range(tensors)],
        dtype=np.float64,
    )
    cuts = draw(
        st.lists(st.lists(st.integers(0, tensors - 1), unique=True, max_size=tensors), min_size=1, max_size=4)
    )
    return costs, cuts


def total_ms(
    costs: NDArray[np.float64], tensors: Sequence[int], codecs: Sequence[int], price: float
) -> float:
    chosen = costs[list(tensors), list(codecs)]
    return float((chosen @ np.array([price, 1.0, 1.0])).sum())


@given(tables(), st.lists(st.floats(1e-7, 1e2), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_some_mix_is_the_optimum_at_any_price(
    table: tuple[NDArray[np.float64], list[list[int]]], prices: list[float]
) -> None:
    costs, cuts = table
    found = best_mixes(costs, cuts)
    assert found.cut.tolist() == sorted(found.cut.tolist())
    for index, tensors in enumerate(cuts):
        mixes = found.choice[found.cut == index].tolist()
        menus = [np.flatnonzero(~np.isnan(costs[tensor, :, 0])).tolist() for tensor in tensors]
        if len(tensors) < 2 or not all(menus):
            assert not mixes
            continue
        assert len({tuple(mix) for mix in mixes}) == len(mixes)
        # For each of the two weights one more than the steps, of which a tensor has one fewer than codecs.
        assert len(mixes) <= 2 * (1 + sum(len(menu) - 1 for menu in menus))
        for mix in mixes:
            assert set(mix[len(tensors) :]) <= {-1}
        for price in prices:
            least = min(total_ms(costs, tensors, codecs, price) for codecs in product(*menus))
            best = min(total_ms(costs, tensors, mix[: len(tensors)], price) for mix in mixes)
            assert best == pytest.approx(least, rel=1e-7)


def test_every_mix_is_one_step_of_one_tensor_from_the_next() -> None:
    # The first tensor goes on at 1 and at 4 ms per byte, the second at 2, where it skips one codec.
    costs = np.array(
        [
            [[10.0, 0.0, 0.0], [8.0, 0.0, 2.0], [7.0, 0.0, 6.0]],
            [[10.0, 0.0, 0.0], [9.0, 0.0, 9.0], [5.0, 0.0, 10.0]],
        ]
    )
    found = best_mixes(costs, [[0, 1]])
    assert found.choice.tolist() == [[0, 0], [1, 0], [1, 2], [2, 2]]


def test_a_device_that_encodes_slowly_has_mixes_of_its_own() -> None:
    costs = np.array([[[10.0, 0.0, 0.0], [5.0, 1.0, 0.0]], [[10.0, 0.0, 0.0], [6.0, 0.0, 1.0]]])
    found = best_mixes(costs, [[0, 1]]).choice.tolist()
    assert [1, 0] in found  # the first gains at 0.2 ms per byte, the second at 0.25
    assert [0, 1] in found  # the first at 2 when encoding takes ten times as long


def test_without_cuts_there_are_none() -> None:
    assert best_mixes(np.zeros((0, 3, 3)), []).cut.tolist() == []
    assert best_mixes(np.ones((1, 3, 3)), [[0], []]).cut.tolist() == []
