"""How much some few answers show of all others: bounds that hold as often as they say."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.plan.evidence import agreement_bounds, erlang_quantile, similarity_bounds


@pytest.mark.parametrize(
    ("events", "share", "value"),
    # Half of the chi-squared quantiles with 2, 10 and 40 degrees of freedom, from any table of them.
    [(1, 0.95, 2.9957), (5, 0.99, 11.6046), (20, 0.05, 13.2547)],
)
def test_quantiles_are_those_of_the_tables(events: int, share: float, value: float) -> None:
    assert erlang_quantile(events, share) == pytest.approx(value, abs=1e-3)


def test_few_answers_that_did_not_change_show_little_and_their_headroom_shows_more() -> None:
    barely, far = agreement_bounds([1.5] * 16), agreement_bounds([100.0] * 16)
    assert barely[0] < 0.7
    assert far[0] == pytest.approx(1 - erlang_quantile(4, 0.99) / 1600)
    assert far[0] > 0.99
    assert agreement_bounds([100.0] * 4)[0] < agreement_bounds([100.0] * 64)[0]
    assert barely[1] == far[1] == 1.0


def test_what_was_seen_to_change_outweighs_the_headroom_of_the_others() -> None:
    least, most = agreement_bounds([0.5, *[900.0] * 15])
    assert least <= 15 / 16 <= most


def test_no_headroom_at_all_shows_nothing_but_that() -> None:
    assert agreement_bounds([0.0] * 8) == (0.0, 0.0)
    with pytest.raises(ValueError, match="no answer"):
        agreement_bounds([])


@given(st.lists(st.floats(min_value=0.0, allow_nan=False), min_size=1, max_size=80))
def test_bounds_hold_the_share_that_was_seen(headrooms: list[float]) -> None:
    least, most = agreement_bounds(headrooms)
    seen = sum(headroom >= 1 for headroom in headrooms) / len(headrooms)
    assert 0.0 <= least <= seen <= most <= 1.0


@pytest.mark.parametrize("count", [4, 16, 64])
@pytest.mark.parametrize("changed", [0.001, 0.02, 0.13])
def test_the_lower_bound_is_below_the_truth_99_times_in_100(count: int, changed: float) -> None:
    """Headrooms of an error that changes this share of all answers and grows in proportion."""
    rng = random.Random(count)
    rate = -math.log(1 - changed)
    wrong = sum(
        agreement_bounds([rng.expovariate(rate) for _ in range(count)])[0] > 1 - changed for _ in range(1000)
    )
    assert wrong <= 20  # 10 are expected; more than 20 come by chance once in 600


def test_a_mean_cosine_of_few_is_trusted_less_than_that_of_many() -> None:
    lower = [similarity_bounds([0.999] * count)[0] for count in (1, 4, 16, 64)]
    assert lower == sorted(lower)
    assert lower[0] < 0.91
    assert lower[-1] == pytest.approx(1 - 0.064 / erlang_quantile(64, 0.01))
    assert similarity_bounds([1.0])[0] == 1.0
    least, most = similarity_bounds([0.9, 0.99, 1.0])
    assert least < sum([0.9, 0.99, 1.0]) / 3 < most
    with pytest.raises(ValueError, match="no answer"):
        similarity_bounds([])


def test_of_opposite_answers_nothing_is_left() -> None:
    assert similarity_bounds([-1.0, -1.0]) == (-1.0, pytest.approx(1 - 4 / erlang_quantile(2, 0.95)))
