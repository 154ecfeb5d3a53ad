from __future__ import annotations

import pytest

from cloud_cluster.sessions import Sessions
from shared.errors import OverloadedError
from shared.wire.messages import Hello, ModelOffer

HELLO = Hello(agent="cam", software="test", models=[ModelOffer(name="net", digest="sha256:a")])


def sessions() -> Sessions:
    return Sessions(max_devices=2, max_announced=2, silence_ms=100.0)


def test_a_span_is_taken_once_and_open_announcements_are_bounded() -> None:
    session = sessions().open(b"1", HELLO, 0.0)
    session.on_announce(1, 10.0)
    assert session.take_span_ms(1, 35.0) == 25.0
    assert session.take_span_ms(1, 36.0) is None
    for request_id in (2, 3, 4):
        session.on_announce(request_id, 40.0)
    assert [session.take_span_ms(request_id, 50.0) for request_id in (2, 3, 4)] == [None, 10.0, 10.0]


def test_silence_ends_a_session_but_an_announced_payload_is_waited_for() -> None:
    held = sessions()
    quiet, sending = held.open(b"1", HELLO, 0.0), held.open(b"2", HELLO, 0.0)
    sending.on_announce(1, 0.0)
    assert held.silent(100.0) == []
    assert held.silent(101.0) == [quiet]
    quiet.heard_ms = 1200.0
    assert held.silent(1201.0) == [sending]


def test_a_second_hello_renews_the_session_and_keeps_what_is_in_flight() -> None:
    held = sessions()
    held.open(b"1", HELLO, 0.0).requests[7] = 70
    renewed = held.open(b"1", Hello(agent="cam", software="test", models=[]), 5.0)
    assert renewed.offers == {}
    assert renewed.requests == {7: 70}
    assert len(held) == 1


def test_there_is_a_most_of_devices() -> None:
    held = sessions()
    held.open(b"1", HELLO, 0.0)
    held.open(b"2", HELLO, 0.0)
    with pytest.raises(OverloadedError, match="max_devices"):
        held.open(b"3", HELLO, 0.0)
    held.close(b"1")
    held.open(b"3", HELLO, 0.0)
