"""Strikes: how many bad messages are too many, and for how long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_cluster.strikes import Strikes


def test_the_last_of_too_many_within_the_window_puts_a_peer_out() -> None:
    strikes = Strikes(limit=3, window_ms=100, ban_ms=50)
    assert not strikes.strike(b"a", 0)
    assert not strikes.strike(b"a", 90)
    assert not strikes.is_out(b"a", 99)
    assert strikes.strike(b"a", 100)
    assert strikes.is_out(b"a", 149)
    assert not strikes.is_out(b"b", 149)


def test_a_peer_that_is_out_comes_back_with_a_clean_slate() -> None:
    strikes = Strikes(limit=2, window_ms=100, ban_ms=50)
    strikes.strike(b"a", 0)
    assert strikes.strike(b"a", 1)
    assert not strikes.strike(b"a", 2)  # it is out already
    assert not strikes.is_out(b"a", 51)
    assert not strikes.strike(b"a", 52)
    assert len(strikes) == 1


def test_strikes_that_are_far_apart_do_not_add_up() -> None:
    strikes = Strikes(limit=3, window_ms=100, ban_ms=50)
    assert not any(strikes.strike(b"a", at_ms) for at_ms in range(0, 2000, 51))
    assert [strikes.strike(b"b", at_ms) for at_ms in (0, 50, 100)] == [False, False, True]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), max_size=200))
def test_no_number_of_peers_makes_it_remember_more(events: list[tuple[int, int]]) -> None:
    strikes = Strikes(limit=3, window_ms=100, ban_ms=100, max_peers=8)
    now_ms, seen = 0, dict[int, list[int]]()
    for peer, pause_ms in events:
        now_ms += pause_ms
        struck = strikes.strike(b"%d" % peer, now_ms)
        seen.setdefault(peer, []).append(now_ms)
        assert len(strikes) <= 16
        if struck:
            # Nobody is put out for less than three strikes within the window.
            assert seen[peer][-1] - seen[peer][-3] <= 100
            seen[peer] = []
