"""Which gateway is dialled, and when."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.gateways import Gateways


def gateways(*endpoints: str, seed: int = 1) -> Gateways:
    made = Gateways(random.Random(seed), 100.0, 2000.0)
    made.configure(endpoints)
    return made


def choose(known: Gateways, now_ms: float) -> tuple[str, float]:
    choice = known.next(now_ms)
    assert choice is not None
    return choice


def test_devices_spread_over_the_gateways_each_in_an_order_of_its_own() -> None:
    first = Counter(choose(gateways("a", "b", "c", seed=seed), 0.0)[0] for seed in range(300))
    assert first.keys() == {"a", "b", "c"}
    assert min(first.values()) > 60
    # Those of a lost gateway spread over the ones that are left.
    second: Counter[str] = Counter()
    for seed in range(300):
        known = gateways("a", "b", "c", seed=seed)
        if choose(known, 0.0)[0] == "a":
            known.failed("a", 0.0)
            second[choose(known, 0.0)[0]] += 1
    assert second.keys() == {"b", "c"}
    assert min(second.values()) > 20


def test_the_next_one_is_dialled_without_a_pause_and_a_pause_comes_when_all_have_failed() -> None:
    known = gateways("a", "b")
    assert not known.all_failed
    first, when_ms = choose(known, 0.0)
    assert when_ms == 0.0
    known.failed(first, 0.0)
    second, when_ms = choose(known, 0.0)
    assert (second, when_ms) == ("b" if first == "a" else "a", 0.0)
    known.failed(second, 1.0)
    assert known.all_failed
    again, when_ms = choose(known, 1.0)
    assert again in (first, second)
    assert 50.0 <= when_ms <= 101.0


def test_pauses_double_to_a_bound_with_jitter_and_end_with_success() -> None:
    known = gateways("a")
    now_ms = 0.0
    pauses = []
    for _ in range(10):
        known.failed("a", now_ms)
        _, when_ms = choose(known, now_ms)
        pauses.append(when_ms - now_ms)
        now_ms = when_ms
    for number, pause_ms in enumerate(pauses):
        longest = min(100.0 * 2**number, 2000.0)
        assert longest / 2 <= pause_ms <= longest
    assert len(set(pauses)) == len(pauses)
    known.served("a")
    known.failed("a", now_ms)
    assert choose(known, now_ms)[1] - now_ms <= 100.0


def test_one_that_is_heard_is_preferred_to_one_of_which_nothing_is_known() -> None:
    known = gateways("a", "b", "c")
    first, _ = choose(known, 0.0)
    heard = next(each for each in "abc" if each != first)
    known.heard(heard, 0.0)
    assert choose(known, 10.0)[0] == heard
    assert choose(known, 1500.0)[0] == first  # it has fallen silent
    known.heard(heard, 2000.0)
    known.failed(heard, 2000.0)
    assert choose(known, 2000.0)[0] == first


def test_cards_add_gateways_and_take_their_own_back_but_none_of_the_configuration() -> None:
    known = gateways("a")
    known.failed("a", 0.0)
    known.learn(["a", "b"])
    assert len(known) == 2
    assert choose(known, 0.0) == ("b", 0.0)
    assert known.failures("a") == 1  # what is known of it stays known
    known.learn([])
    assert len(known) == 1
    assert choose(known, 0.0)[0] == "a"
    known.configure([])
    assert known.next(0.0) is None


@given(
    st.lists(st.tuples(st.sampled_from(["failed", "served", "heard"]), st.sampled_from("abc")), max_size=40)
)
def test_some_gateway_is_always_due_within_the_longest_pause(events: list[tuple[str, str]]) -> None:
    known = gateways("a", "b", "c")
    now_ms = 0.0
    for event, endpoint in events:
        now_ms += 10.0
        if event == "served":
            known.served(endpoint)
        else:
            getattr(known, event)(endpoint, now_ms)
        chosen, when_ms = choose(known, now_ms)
        assert chosen in "abc"
        assert now_ms <= when_ms <= now_ms + 2000.0
        if not known.all_failed:
            assert when_ms == now_ms
