from __future__ import annotations

import pytest
from msgspec import UNSET

from cloud_cluster.infer_work import expected_work_ms
from cloud_cluster.registry import NOT_SERVED, Registry, ServedLabel
from shared.errors import DigestMismatchError, LimitError, ProtocolError, UnknownModelError
from shared.wire import SET_CUT, encode_message
from shared.wire.messages import Infer, Limits, ModelCard, ReplicaHello


def registry(*labels: str) -> Registry:
    return Registry(served(*labels))


def served(*labels: str) -> list[ServedLabel]:
    return [ServedLabel(label, label.partition("@")[0]) for label in labels or ("a",)]


def hello(
    model: str = "a",
    digest: str = "sha256:1",
    unit_ms: tuple[float, ...] = (4.0, 2.0, 1.0),
    version: str = "",
    tables: str = "",
) -> ReplicaHello:
    return ReplicaHello(
        replica="r",
        model=model,
        digest=digest,
        unit_ms=list(unit_ms),
        credits=1,
        version=version,
        tables=tables,
    )


def card(of: Registry, digest: str, name: str = "a") -> ModelCard:
    return next(each for each in of.cards({name: digest}) if each.name == name)


def test_unit_times_are_medians_over_the_replicas() -> None:
    held = registry("a", "b")
    held.join(b"1", hello(unit_ms=(1.0, 10.0)))
    held.join(b"2", hello(unit_ms=(2.0, 30.0)))
    held.join(b"3", hello(unit_ms=(9.0, 20.0)))
    first, other = held.cards({})
    assert (first.unit_ms, first.replicas) == ([2.0, 20.0], 3)
    assert (other.unit_ms, other.replicas, other.digest) == ([], 0, "")
    left = held.leave(b"1")
    assert left is not None
    assert left.index == 0
    assert held.cards({})[0].unit_ms == [5.5, 25.0]
    assert held.leave(b"1") is None


def test_a_card_names_the_transform_tables_that_every_replica_holds() -> None:
    held = registry()
    held.join(b"1", hello())
    assert card(held, "sha256:1").tables is UNSET
    held.join(b"1", hello(tables="t"))
    assert card(held, "sha256:1").tables == "t"
    held.join(b"2", hello(tables="u"))
    assert card(held, "sha256:1").tables is UNSET
    held.join(b"2", hello(tables="t"))
    assert card(held, "sha256:1").tables == "t"
    held.join(b"3", hello())
    assert card(held, "sha256:1").tables is UNSET
    held.leave(b"3")
    assert card(held, "sha256:1").tables == "t"


def test_the_work_of_a_request_is_what_the_cloud_runs_of_it_for_each_sample() -> None:
    held = registry()
    version = held.version_for(0, {"a": "sha256:1"})

    def work_ms(cut: int, batch: int = 1, tail_units: bytes = b"") -> float:
        infer = Infer(batch=batch, tensors=[], reply_codec=0, tail_units=tail_units)
        return expected_work_ms(version, cut, encode_message(infer)[1], Limits(max_batch=8))

    assert work_ms(1) == 0.0
    held.join(b"1", hello())
    assert [work_ms(cut) for cut in range(4)] == [7.0, 3.0, 1.0, 0.0]
    assert work_ms(900) == 0.0
    assert work_ms(1, batch=8) == 24.0
    assert work_ms(SET_CUT, tail_units=b"\x05") == 5.0
    assert work_ms(SET_CUT, batch=2, tail_units=b"\x06\xff") == 6.0
    with pytest.raises(LimitError, match="at most 8"):
        work_ms(0, batch=9)
    for cut, units in ((SET_CUT, b""), (1, b"\x01")):
        with pytest.raises(ProtocolError, match="tail_units"):
            work_ms(cut, tail_units=units)
    with pytest.raises(ProtocolError, match="not valid"):
        expected_work_ms(version, 0, b"\xc1", Limits())
    with pytest.raises(LimitError, match="header"):
        expected_work_ms(version, 0, bytes(2**20 + 1), Limits())


def test_another_digest_is_served_beside_the_first_under_an_index_of_its_own() -> None:
    held = registry()
    assert held.join(b"1", hello()).index == 0
    new = held.join(b"2", hello(digest="sha256:2", unit_ms=(1.0,)))
    assert new.index == 1
    old_card, new_card = card(held, "sha256:1"), card(held, "sha256:2")
    assert (old_card.index, old_card.unit_ms, old_card.error) == (0, [4.0, 2.0, 1.0], "")
    assert (new_card.index, new_card.unit_ms, new_card.error) == (1, [1.0], "")
    assert held.version_for(0, {"a": "sha256:1"}).digest == "sha256:1"
    with pytest.raises(DigestMismatchError, match=r"sha256:2.*sha256:1"):
        held.version_for(0, {"a": "sha256:2"})
    other = card(held, "sha256:3")
    assert all(digest in other.error for digest in ("sha256:1", "sha256:2", "sha256:3"))
    # A second replica of the old one joins it, and the index stays.
    assert held.join(b"3", hello()).index == 0
    assert held.ready("a") == 3


def test_a_past_version_without_replicas_is_refused_and_vanishes_with_its_last_device() -> None:
    held = registry()
    held.join(b"1", hello())
    held.join(b"2", hello(digest="sha256:2"))
    held.leave(b"1")
    late = card(held, "sha256:1")
    assert (late.index, late.replicas) == (1, 1)
    assert "sha256:1" in late.error
    assert "sha256:2" in late.error
    with pytest.raises(DigestMismatchError, match=r"sha256:1.*sha256:2"):
        held.version_for(0, {"a": "sha256:1"})
    assert held.prune([{"a": "sha256:1"}, {"a": "sha256:2"}]) == []
    assert held.prune([{"b": "sha256:1"}, {"a": "sha256:2"}]) == [0]
    assert [version.index for version in held] == [1]
    with pytest.raises(UnknownModelError, match="index 0"):
        held.version_for(0, {"a": "sha256:1"})
    # An index is never used again.
    assert held.join(b"3", hello(digest="sha256:3")).index == 2


def test_the_current_version_stays_without_replicas_and_devices() -> None:
    held = registry()
    held.join(b"1", hello())
    held.leave(b"1")
    assert held.prune([]) == []
    # Nobody is served, but whoever has the digest may wait for it; others are told.
    assert (card(held, "sha256:1").error, card(held, "sha256:1").replicas) == ("", 0)
    assert "sha256:9" in card(held, "sha256:9").error
    assert held.join(b"2", hello()).index == 0


def test_a_past_version_that_comes_back_when_nothing_else_is_left_is_current_again() -> None:
    held = registry()
    held.join(b"1", hello())
    held.join(b"2", hello(digest="sha256:2"))
    held.leave(b"2")
    # A replica that only reconnects changes nothing while there are others.
    held.join(b"3", hello())
    assert [version.current for version in held] == [True, False]
    held.leave(b"1")
    held.leave(b"3")
    assert card(held, "sha256:1").error == ""
    assert "sha256:1" in card(held, "sha256:2").error


def test_two_labels_of_one_name_are_told_apart_by_the_devices_digest() -> None:
    held = registry("a@1", "a@2")
    assert held.join(b"1", hello(version="1")).index == 0
    assert card(held, "sha256:2").digest == ""
    assert card(held, "sha256:2").index == 1
    assert held.join(b"2", hello(digest="sha256:2", version="2")).index == 1
    assert card(held, "sha256:2").index == 1
    assert card(held, "sha256:1").index == 0
    assert len(held.cards({})) == 1
    # The first has none left, but it is still wanted: no mismatch, and one can be started.
    held.leave(b"1")
    assert card(held, "sha256:1").error == ""
    assert held.starved(0) == ["a@1"]
    assert held.starved(1) == []
    assert held.starved(9) == []


def test_before_any_replica_every_label_of_the_name_is_asked_for() -> None:
    held = registry("a@1", "a@2", "b")
    assert held.starved(0) == ["a@1", "a@2"]
    assert held.starved(2) == ["b"]


def test_a_label_that_is_no_longer_wanted_drains() -> None:
    held = registry("a", "b")
    held.join(b"1", hello())
    held.configure(served("b", "c"))
    with pytest.raises(UnknownModelError, match="there are b, c"):
        held.version_for(0, {"a": "sha256:1"})
    with pytest.raises(UnknownModelError, match="there are b, c"):
        held.join(b"2", hello())
    assert "there are b, c" in card(held, "sha256:1").error
    assert held.prune([{"a": "sha256:1"}]) == []
    held.leave(b"1")
    assert held.prune([{"a": "sha256:1"}]) == [0]
    assert [version.label for version in held] == ["b", "c"]
    # Taken up again it starts anew.
    held.configure(served("a"))
    assert held.join(b"1", hello()).index == 3


def test_what_does_not_fit_is_refused() -> None:
    held = registry()
    with pytest.raises(UnknownModelError, match="there are a"):
        held.join(b"1", hello("z"))
    with pytest.raises(UnknownModelError, match="a@7"):
        held.join(b"1", hello(version="7"))
    held.join(b"1", hello())
    with pytest.raises(ProtocolError, match="3 units"):
        held.join(b"2", hello(unit_ms=(1.0,)))
    with pytest.raises(UnknownModelError):
        held.version_for(1, {"a": "sha256:1"})
    with pytest.raises(UnknownModelError, match="did not offer"):
        held.version_for(0, {})


def test_every_offer_gets_a_card_and_every_name_too() -> None:
    held = registry("a", "b")
    held.join(b"1", hello())
    offers = {"a": "sha256:9", "b": "sha256:b", "c": "sha256:c"}
    cards = {each.name: each for each in held.cards(offers)}
    assert "sha256:9" in cards["a"].error
    assert "sha256:1" in cards["a"].error
    assert (cards["a"].index, cards["b"].index, cards["c"].index) == (0, 1, NOT_SERVED)
    assert cards["b"].error == ""
    assert "there are a, b" in cards["c"].error
