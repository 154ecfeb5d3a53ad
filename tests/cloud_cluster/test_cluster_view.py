"""Replicas know the gateways by their answers, and count what arrives at all of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cloud_cluster.cluster_view import ClusterView, Demand, GatewayReport, WorkRate


def report(
    name: str,
    admitted: int = 0,
    refused: int = 0,
    wait_ms: float = 0.0,
    port: int = 1,
    past: Sequence[str] = (),
) -> GatewayReport:
    demand = Demand(admitted=admitted, refused=refused, wait_ms=wait_ms, held_past=list(past))
    return GatewayReport(
        gateway=name,
        device_endpoint=f"tcp://{name}:5555",
        replica_endpoint=f"tcp://10.0.0.{port}:5556",
        load_endpoint=f"tcp://{name}:5557",
        models={"net@2": demand},
    )


def test_what_arrives_is_counted_over_all_gateways_refused_or_not() -> None:
    view = ClusterView("net@2")
    view.update([report("a", admitted=100), report("b", admitted=7, port=2)], 10.0)
    # Totals say nothing of a rate the first time.
    assert view.arriving_per_s() == 0
    view.update([report("a", 130, 10, 25.0), report("b", 17, 0, 80.0, port=2)], 12.0)
    assert view.arriving_per_s() == pytest.approx((40 + 10) / 2)
    assert view.wait_ms() == 80.0
    assert view.replica_endpoints == ["tcp://10.0.0.1:5556", "tcp://10.0.0.2:5556"]


def test_a_network_that_a_gateway_does_not_know_yet_has_no_load_there() -> None:
    view = ClusterView("other")
    view.update([report("a", 5, 5, 9.0)], 0.0)
    view.update([report("a", 9, 5, 9.0)], 1.0)
    assert (view.arriving_per_s(), view.wait_ms()) == (0, 0)


def test_a_gateway_is_gone_when_the_others_answer_and_it_does_not() -> None:
    view = ClusterView("net@2")
    view.update([report("a"), report("b", port=2)], 0.0)
    view.update([report("a")], 3.0)
    assert len(view.replica_endpoints) == 2
    view.update([report("a")], 3.1)
    assert view.replica_endpoints == ["tcp://10.0.0.1:5556"]
    # Nobody answers: that says nothing of where they are.
    view.update([], 60.0)
    assert view.replica_endpoints == ["tcp://10.0.0.1:5556"]


def test_a_gateway_that_starts_anew_at_its_old_place_is_one_place_and_no_negative_rate() -> None:
    view = ClusterView("net@2")
    view.update([report("a", admitted=1000)], 0.0)
    view.update([report("a2", admitted=3)], 1.0)
    assert view.replica_endpoints == ["tcp://10.0.0.1:5556"]
    assert view.arriving_per_s() == 0
    view.update([report("a2", admitted=8)], 2.0)
    assert view.arriving_per_s() == pytest.approx(5)


def test_one_gateway_whose_devices_hold_a_replaced_digest_is_enough_to_lean_on_it() -> None:
    view = ClusterView("net@2")
    view.update([report("a"), report("b", port=2, past=["sha256:old"])], 0.0)
    assert view.leans_on("sha256:old")
    assert not view.leans_on("sha256:new")
    view.update([report("a"), report("b", port=2)], 1.0)
    assert not view.leans_on("sha256:old")


def test_work_is_a_rate_between_two_looks() -> None:
    rate = WorkRate(100.0)
    assert rate.take(500.0, 25, 101.0) == pytest.approx((0.5, 25))
    assert rate.take(900.0, 35, 101.5) == pytest.approx((0.8, 20))
    assert rate.take(900.0, 35, 102.5) == (0, 0)
