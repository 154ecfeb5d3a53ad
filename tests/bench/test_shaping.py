from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.shaping import Lane, TokenBucket, Trace, burst_bytes_at, load_trace

RATES = st.sampled_from([0.0, 0.1e6, 0.5e6, 5.85e6, 100e6])
# (gap before it in seconds, what happens): bytes offered on a key, a new rate, or nothing but a look.
EVENTS = st.lists(
    st.tuples(
        st.floats(0, 0.05),
        st.one_of(
            st.tuples(st.integers(0, 2), st.integers(0, 40_000)),
            RATES,
            st.none(),
        ),
    ),
    max_size=40,
)


def test_a_bucket_sends_its_burst_at_once_and_then_at_its_rate() -> None:
    bucket = TokenBucket(8e6, now_s=10.0)
    assert bucket.burst_bytes == 1500
    assert bucket.ready_at(1500) == 10.0
    bucket.take(1500, 10.0)
    assert bucket.ready_at(1000) == pytest.approx(10.001)
    bucket.take(1000, 10.001)
    bucket.set_rate(0.8e6, 10.001)
    assert bucket.ready_at(1000) == pytest.approx(10.011)
    with pytest.raises(ValueError, match="never fit"):
        bucket.ready_at(1501)


def test_an_idle_bucket_saves_no_more_than_a_burst() -> None:
    bucket = TokenBucket(8e6, now_s=0.0)
    bucket.take(1500, 100.0)
    assert bucket.ready_at(1500) == pytest.approx(100.0015)


def test_a_dead_link_is_never_ready_and_an_endless_one_always() -> None:
    dead = TokenBucket(0.0, now_s=0.0)
    assert dead.ready_at(1) == math.inf, "not even what it had saved"
    endless = TokenBucket(math.inf, now_s=0.0)
    endless.take(endless.burst_bytes, 0.0)
    assert endless.ready_at(endless.burst_bytes) == 0.0
    with pytest.raises(ValueError, match="0 or more"):
        TokenBucket(-1.0, now_s=0.0)


@given(start=RATES, events=EVENTS, delay_s=st.sampled_from([0.0, 0.02]), late_s=st.floats(0, 0.5))
def test_a_lane_keeps_every_byte_in_order_and_sends_no_more_than_its_bucket_allows(
    start: float, events: list[tuple[float, object]], delay_s: float, late_s: float
) -> None:
    lane: Lane[int] = Lane(start, delay_s, queue_bytes=1 << 20, now_s=0.0)
    sent: dict[int, bytes] = {0: b"", 1: b"", 2: b""}
    got: dict[int, bytes] = {0: b"", 1: b"", 2: b""}
    now_s, capacity_bytes, rate_bps, max_burst = 0.0, 0.0, start, burst_bytes_at(start)
    offered_bytes = delivered_bytes = 0
    for gap_s, event in events:
        now_s += gap_s
        capacity_bytes += rate_bps / 8 * gap_s
        if isinstance(event, float):
            rate_bps = event
            max_burst = max(max_burst, burst_bytes_at(rate_bps))
            lane.set_rate(rate_bps, now_s)
        elif isinstance(event, tuple):
            key, size = event
            data = bytes(index % 251 for index in range(len(sent[key]), len(sent[key]) + size))
            lane.offer(key, data, now_s)
            sent[key] += data
            offered_bytes += size
        for key, piece in lane.due(now_s):
            got[key] += piece
            delivered_bytes += len(piece)
        assert delivered_bytes <= capacity_bytes + max_burst + 1e-6 * capacity_bytes
        assert all(sent[key].startswith(got[key]) for key in got)
    # However late the caller looks, nothing is left behind once the link has had the time for it.
    lane.set_rate(100e6, now_s)
    end_s = now_s + offered_bytes * 8 / 100e6 + delay_s + late_s + 1e-6
    for key, piece in lane.due(end_s):
        got[key] += piece
    assert got == sent
    assert lane.next_s() == math.inf
    assert lane.room_bytes == lane.queue_bytes


@given(looks=st.lists(st.floats(0.0005, 0.2), min_size=1, max_size=30))
def test_late_looks_cost_a_busy_lane_nothing(looks: list[float]) -> None:
    lane: Lane[str] = Lane(8e6, 0.0, queue_bytes=10**7, now_s=0.0)
    lane.offer("a", bytes(10**7), 0.0)
    now_s, got = 0.0, 0
    for gap_s in looks:
        now_s += gap_s
        got += sum(len(piece) for _, piece in lane.due(now_s))
    # Within one packet of the bucket's line; a byte more for the rounding of the sum of the gaps.
    assert got == pytest.approx(now_s * 1e6 + 1500, abs=1501)


def test_bytes_arrive_one_delay_after_they_left() -> None:
    lane: Lane[str] = Lane(12e6, 0.05, queue_bytes=10_000, now_s=0.0)
    lane.offer("a", b"x" * 3000, 1.0)
    assert lane.room_bytes == 7000
    assert lane.due(1.0) == []
    assert lane.next_s() == pytest.approx(1.001)
    assert lane.due(1.0499) == []
    assert [bytes(piece) for _, piece in lane.due(1.0501)] == [b"x" * 1500]
    assert lane.next_s() == pytest.approx(1.051)
    assert [bytes(piece) for _, piece in lane.due(1.0511)] == [b"x" * 1500]


def test_a_shorter_delay_lets_nothing_overtake() -> None:
    lane: Lane[str] = Lane(math.inf, 1.0, queue_bytes=10_000, now_s=0.0)
    lane.offer("a", b"first", 0.0)
    lane.due(0.0)
    lane.delay_s = 0.0
    lane.offer("a", b"second", 0.1)
    assert lane.due(0.9) == []
    assert [bytes(piece) for _, piece in lane.due(1.0)] == [b"first", b"second"]


def test_the_end_of_a_stream_keeps_its_place() -> None:
    lane: Lane[str] = Lane(1e6, 0.0, queue_bytes=10_000, now_s=0.0)
    lane.offer("a", b"x" * 2000, 0.0)
    lane.offer("a", b"", 0.0)
    lane.offer("b", b"y", 0.0)
    assert [(key, len(piece)) for key, piece in lane.due(1.0)] == [
        ("a", 1500),
        ("a", 500),
        ("a", 0),
        ("b", 1),
    ]


def test_a_forgotten_connection_frees_its_room() -> None:
    lane: Lane[str] = Lane(1e6, 1.0, queue_bytes=10_000, now_s=0.0)
    lane.offer("a", b"x" * 4000, 0.0)
    lane.offer("b", b"y" * 1000, 0.0)
    lane.due(0.0)
    lane.forget("a")
    assert lane.room_bytes == 9000
    assert [(key, len(piece)) for key, piece in lane.due(5.0)] == [("b", 1000)]


def test_a_trace_of_seconds_and_mbps(tmp_path: Path) -> None:
    path = tmp_path / "walk.txt"
    path.write_text("# a walk\n0 10\n2.0 0   # tunnel\n\n3 4.5\n")
    trace = load_trace(path)
    assert trace == Trace(((2.0, 10e6), (1.0, 0.0), (1.0, 4.5e6)))
    assert trace.at(0.0) == (10e6, 2.0)
    assert trace.at(2.25) == (0.0, 0.75)
    assert trace.at(4.0) == (10e6, 2.0)


def test_a_mahimahi_trace_counts_packets(tmp_path: Path) -> None:
    path = tmp_path / "cell.up"
    path.write_text("0\n10\n99\n100\n350\n")
    trace = load_trace(path)
    assert [rate for _, rate in trace.steps] == [360e3, 120e3, 0.0, 120e3]
    assert trace.duration_s == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0 1\nfast 2\n", r":2: not a number"),
        ("0 1\n1\n", r":2: expected rising"),
        ("5\n4\n", r":2: expected rising"),
        ("0 1 2\n", r":1: expected rising"),
        ("0 -1\n1 2\n", r":1: negative"),
        ("0 nan\n1 2\n", r":1: negative or endless"),
        ("", "too short"),
        ("0 5\n", "too short"),
        ("3 5\n3 6\n", "same second"),
    ],
)
def test_a_trace_that_is_not_one_is_refused_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        load_trace(path)
