from __future__ import annotations

import pytest

from cloud_cluster.registry import NOT_SERVED, Registry
from shared.errors import DigestMismatchError, ProtocolError, UnknownModelError
from shared.wire import SET_CUT
from shared.wire.messages import ReplicaHello


def hello(
    model: str = "a", digest: str = "sha256:1", unit_ms: tuple[float, ...] = (4.0, 2.0, 1.0)
) -> ReplicaHello:
    return ReplicaHello(replica="r", model=model, digest=digest, unit_ms=list(unit_ms), credits=1)


def test_unit_times_are_medians_over_the_replicas() -> None:
    registry = Registry(["a", "b"])
    registry.join(b"1", hello(unit_ms=(1.0, 10.0)))
    registry.join(b"2", hello(unit_ms=(2.0, 30.0)))
    registry.join(b"3", hello(unit_ms=(9.0, 20.0)))
    card, other = registry.cards({})
    assert (card.unit_ms, card.replicas) == ([2.0, 20.0], 3)
    assert (other.unit_ms, other.replicas, other.digest) == ([], 0, "")
    assert registry.leave(b"1") == 0
    assert registry.cards({})[0].unit_ms == [5.5, 25.0]
    assert registry.leave(b"1") is None


def test_the_work_of_a_cut_is_what_lies_above_it() -> None:
    registry = Registry(["a"])
    assert registry.work_ms(0, 1) == 0.0
    registry.join(b"1", hello())
    assert [registry.work_ms(0, cut) for cut in range(4)] == [7.0, 3.0, 1.0, 0.0]
    assert registry.work_ms(0, 900) == 0.0
    assert registry.work_ms(0, SET_CUT) == 7.0


def test_another_digest_is_refused_until_the_first_kind_has_left() -> None:
    registry = Registry(["a"])
    registry.join(b"1", hello())
    with pytest.raises(DigestMismatchError, match=r"sha256:1.*sha256:2"):
        registry.join(b"2", hello(digest="sha256:2"))
    assert registry.ready(0) == 1
    registry.leave(b"1")
    # The last digest known stays, so that a device is told of a mismatch also meanwhile.
    assert isinstance(registry.refusal(0, {"a": "sha256:2"}), DigestMismatchError)
    registry.join(b"2", hello(digest="sha256:2", unit_ms=(1.0,)))
    assert registry.refusal(0, {"a": "sha256:2"}) is None


def test_what_does_not_fit_is_refused() -> None:
    registry = Registry(["a"])
    with pytest.raises(UnknownModelError, match="there are a"):
        registry.join(b"1", hello("z"))
    registry.join(b"1", hello())
    with pytest.raises(ProtocolError, match="3 units"):
        registry.join(b"2", hello(unit_ms=(1.0,)))
    assert isinstance(registry.refusal(1, {"a": "sha256:1"}), UnknownModelError)
    assert isinstance(registry.refusal(0, {}), UnknownModelError)


def test_every_offer_gets_a_card_and_every_model_too() -> None:
    registry = Registry(["a", "b"])
    registry.join(b"1", hello())
    cards = {card.name: card for card in registry.cards({"a": "sha256:9", "b": "sha256:b", "c": "sha256:c"})}
    assert "sha256:9" in cards["a"].error
    assert "sha256:1" in cards["a"].error
    assert (cards["a"].index, cards["b"].index, cards["c"].index) == (0, 1, NOT_SERVED)
    assert cards["b"].error == ""
    assert "there are a, b" in cards["c"].error
