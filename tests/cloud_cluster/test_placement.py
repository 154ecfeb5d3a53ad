"""Serve's names and numbers, read as ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cloud_cluster.placement import ReplicaCount, reachable_at, replica_counts, tail_name


def status(**applications: dict[str, dict[str, int]]) -> Any:
    return SimpleNamespace(
        applications={
            application: SimpleNamespace(
                deployments={
                    name: SimpleNamespace(replica_states=states) for name, states in deployments.items()
                }
            )
            for application, deployments in applications.items()
        }
    )


def test_a_deployment_is_named_after_its_network_and_no_two_share_one() -> None:
    assert tail_name("efficientnet-lite0") == "Tail-efficientnet-lite0"
    names = {tail_name(label) for label in ("net@2", "net-2", "net 2", "net/2", "net")}
    assert len(names) == 5
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789T-") for name in names)


def test_a_replica_that_stops_counts_no_more_and_one_that_starts_is_meant_to_be() -> None:
    counts = replica_counts(
        status(
            suture={
                "Gateway": {"RUNNING": 1},
                "Tail-a": {"RUNNING": 2, "STARTING": 1, "STOPPING": 4},
                tail_name("a@2"): {"UPDATING": 1, "RECOVERING": 1},
            },
            other={"Tail-b": {}},
        ),
        ["a", "a@2", "b", "c"],
    )
    assert counts == {
        "a": ReplicaCount("suture", target=3, starting=1),
        "a@2": ReplicaCount("suture", target=2, starting=1),
        "b": ReplicaCount("other", target=0, starting=0),
    }


def test_what_is_bound_to_every_address_is_reached_at_its_node() -> None:
    assert reachable_at("tcp://0.0.0.0:5555", "10.1.2.3") == "tcp://10.1.2.3:5555"
    assert reachable_at("tcp://[::]:5555", "fd00::7") == "tcp://[fd00::7]:5555"
    assert reachable_at("tcp://127.0.0.1:5555", "10.1.2.3") == "tcp://127.0.0.1:5555"
