"""How much some few answers show of all others: bounds that hold as often as they say."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.plan.evidence import (
    agreement_bounds,
    answers_needed,
    erlang_quantile,
    is_hopeless,
    similarity_bounds,
)


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


def _looked_at(rng: random.Random, changed: float, enough: float = 0.99, most: int = 64) -> tuple[bool, int]:
    """Whether a pair that changes so many answers passes, and after how many inputs that is known."""
    rate = -math.log(1 - changed)
    headrooms: list[float] = []
    while True:
        headrooms += [rng.expovariate(rate) for _ in range(max(4, len(headrooms)))]
        count = len(headrooms)
        least, _ = agreement_bounds(headrooms)
        if least >= enough or count == most or is_hopeless("top1", least, count, enough, most):
            return least >= enough, count


def test_a_pair_that_is_not_good_enough_passes_once_in_twenty_at_most() -> None:
    """With all looks together, at the very limit; beyond it more rarely still."""
    rng = random.Random(7)
    assert sum(_looked_at(rng, 0.0101)[0] for _ in range(2000)) <= 100
    assert sum(_looked_at(rng, 0.02)[0] for _ in range(2000)) <= 10


def test_what_is_given_up_early_would_hardly_have_passed() -> None:
    rng = random.Random(8)
    good = [_looked_at(rng, 0.001) for _ in range(1000)]
    assert sum(passed for passed, _ in good) >= 980
    bad = [_looked_at(rng, 0.1) for _ in range(1000)]
    assert sum(count for _, count in bad) < 16 * 1000  # of the 64,000 that there are


@pytest.mark.parametrize(
    ("at_least", "count", "hopeless"), [(0.5, 8, True), (0.9, 8, False), (0.95, 32, True)]
)
def test_few_answers_can_be_hopeless(at_least: float, count: int, hopeless: bool) -> None:
    assert is_hopeless("top1", at_least, count, 0.99, 64) is hopeless
    assert is_hopeless("top1", at_least, count, 1.0, 64)  # cannot be shown by however many
    assert is_hopeless("top1", at_least, 64, 0.99, 64)  # there are no more
    assert not is_hopeless("top1", 0.99, 64, 0.99, 64)


def test_how_many_answers_it_takes_is_how_many_it_takes() -> None:
    rng, needed = random.Random(9), []
    for _ in range(200):
        least, _ = agreement_bounds([rng.expovariate(0.005) for _ in range(64)])
        needed.append(answers_needed("top1", least, 64, 0.99) or math.inf)
    middle = int(sorted(needed)[100])
    assert 64 <= middle < 200
    shown = [agreement_bounds([rng.expovariate(0.005) for _ in range(middle)])[0] >= 0.99 for _ in range(200)]
    assert sum(shown) > 60  # about half of them
    assert answers_needed("top1", 0.95, 64, 0.99) is None  # changes too many, however closely it is looked at
    few_of_what_changes_too_many = answers_needed("top1", 0.95, 4, 0.99)  # as far as four can say
    assert few_of_what_changes_too_many is not None
    assert few_of_what_changes_too_many > 4
    cosines = [0.995] * 8
    few = answers_needed("cosine", similarity_bounds(cosines)[0], 8, 0.99)
    assert few is not None
    assert similarity_bounds([0.995] * few)[0] >= 0.99 > similarity_bounds([0.995] * (few - 2))[0]
    assert is_hopeless("cosine", 0.9, 32, 0.99, 64)
    assert not is_hopeless("cosine", similarity_bounds([0.999] * 4)[0], 4, 0.99, 64)


def test_quantiles_of_many_events_go_on_from_those_of_few() -> None:
    for share in (0.01, 0.05, 0.95, 0.99):
        assert erlang_quantile(256, share) + 1 == pytest.approx(erlang_quantile(257, share), rel=4e-4)
