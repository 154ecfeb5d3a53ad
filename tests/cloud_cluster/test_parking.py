"""Parking: which connections hold too much of what nobody can read yet."""

from __future__ import annotations

from cloud_cluster.parking import STRANGER_BYTES, Parking

MIB = 2**20


class Lot:
    """A parking with the kernel's counters beside it."""

    def __init__(self, max_strangers: int = 8, max_parked_bytes: int = 1000 * MIB) -> None:
        self.parking = Parking(32 * MIB, max_strangers, max_parked_bytes, greet_ms=1000)
        self.arrived: dict[int, int] = {}

    def come(self, fd: int, now_ms: float = 0, known: bool = True) -> None:
        self.parking.accepted(fd, now_ms)
        self.arrived[fd] = 100
        self.parking.heard(fd)
        if known:
            self.parking.greeted(fd)

    def look(self, now_ms: float = 0) -> dict[int, str]:
        return dict(self.parking.look(now_ms, self.arrived.get))


def test_one_whole_message_may_be_under_way_and_not_more() -> None:
    lot = Lot()
    lot.come(7)
    assert lot.look() == {}
    lot.arrived[7] += 32 * MIB
    assert lot.look() == lot.look() == {}
    assert lot.parking.parked_bytes == 32 * MIB
    lot.arrived[7] += 2 * MIB
    assert lot.look() == {}
    (complaint,) = lot.look().items()
    assert complaint[0] == 7
    assert f"{34 * MIB} bytes" in complaint[1]
    assert lot.look() == {}  # told once
    assert len(lot.parking) == 0


def test_what_had_arrived_whole_is_read_before_the_second_look() -> None:
    """A stalled loop finds much in the kernel, looks, and reads it then."""
    lot = Lot()
    lot.come(7)
    lot.look()
    for _ in range(5):
        lot.arrived[7] += 50 * MIB
        assert lot.look() == {}
        lot.parking.heard(7)
        assert lot.look() == {}
        assert lot.parking.parked_bytes == 0


def test_heartbeats_of_a_day_that_zeromq_keeps_to_itself_are_not_parked() -> None:
    lot = Lot()
    lot.come(7)
    for _ in range(86_400):
        lot.arrived[7] += 100_000  # of which no message is told, but one came out since
        lot.parking.heard(7)
        assert lot.look() == {}


def test_a_stranger_may_send_a_greeting_and_has_little_time_for_it() -> None:
    lot = Lot()
    lot.come(1, known=False)
    lot.come(2, known=False)
    lot.come(3, known=True)
    lot.look()
    for fd in (1, 3):
        lot.arrived[fd] += STRANGER_BYTES + 1
    assert lot.look() == {}
    assert "unfinished" in lot.look()[1]
    assert lot.look(999) == {}
    assert lot.look(1001) == {2: "no greeting within 1000 ms"}
    assert lot.look(10_000) == {}


def test_who_parts_is_a_stranger_again() -> None:
    lot = Lot()
    lot.come(1)
    assert lot.look(5000) == {}
    number = lot.parking.greeted(1)
    assert number is not None
    lot.parking.parted(1, number, 5000)
    assert lot.look(6000) == {}
    assert lot.look(6001) == {1: "no greeting within 1000 ms"}


def test_of_too_many_strangers_the_oldest_go() -> None:
    lot = Lot(max_strangers=3)
    for fd in range(10, 16):
        lot.come(fd, known=False)
    lot.parking.greeted(10)
    assert list(lot.look()) == [11, 12]
    assert list(lot.look()) == []


def test_all_together_are_bounded_and_the_worst_goes() -> None:
    lot = Lot(max_parked_bytes=60 * MIB)
    for fd in (1, 2, 3):
        lot.come(fd)
    lot.look()
    lot.arrived[1] += 20 * MIB
    lot.arrived[2] += 21 * MIB
    lot.arrived[3] += 18 * MIB
    assert lot.look() == {}
    lot.arrived[3] += 2 * MIB
    assert list(lot.look()) == [2]
    assert lot.parking.parked_bytes == 40 * MIB


def test_as_many_go_at_one_look_as_are_too_many() -> None:
    lot = Lot(max_parked_bytes=60 * MIB)
    for fd in range(1, 11):
        lot.come(fd)
    lot.look()
    for fd in range(1, 11):
        lot.arrived[fd] += (20 + fd) * MIB
    assert sorted(lot.look()) == list(range(3, 11))
    assert lot.parking.parked_bytes == 43 * MIB


def test_a_connection_that_is_gone_is_forgotten_and_its_descriptor_may_come_back() -> None:
    lot = Lot()
    lot.come(7)
    lot.look()
    del lot.arrived[7]
    assert lot.look() == {}
    assert len(lot.parking) == 0
    lot.come(7, now_ms=50_000, known=False)
    assert lot.look(50_900) == {}
    assert list(lot.look(51_100)) == [7]


def test_a_peer_found_to_have_left_takes_nothing_from_who_has_its_descriptor_now() -> None:
    lot = Lot()
    lot.come(7)
    first = lot.parking.greeted(7)
    lot.come(7, now_ms=100)  # the descriptor's next connection; its first peer is not missed yet
    second = lot.parking.greeted(7)
    assert first is not None
    assert second is not None
    lot.parking.parted(7, first, 200)
    assert lot.look(5000) == {}
    lot.parking.parted(7, second, 5000)
    assert lot.look(5900) == {}
    assert set(lot.look(6100)) == {7}
