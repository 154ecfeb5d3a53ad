"""Names of the deployments, where they are reached, and what Serve says of their replicas.  Pure."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cloud_cluster.sockets import tcp_endpoint

if TYPE_CHECKING:
    from ray.serve.schema import ServeStatus

__all__ = ["GATEWAY", "ReplicaCount", "reachable_at", "replica_counts", "tail_name"]

GATEWAY = "Gateway"

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True)
class ReplicaCount:
    """Of one network: the replicas that Serve means to have, and those of them that are not ready yet."""

    application: str
    target: int
    starting: int


def tail_name(label: str) -> str:
    """The deployment of a network's replicas; different for different labels."""
    readable = _NOT_IN_NAMES.sub("-", label)
    return f"Tail-{readable}" + ("" if readable == label else f"-{zlib.crc32(label.encode()):08x}")


def reachable_at(endpoint: str, host: str) -> str:
    """Where others reach what is bound to ``endpoint``: at ``host`` if it is bound to every address."""
    for wildcard in ("//0.0.0.0:", "//[::]:", "//*:"):
        if wildcard in endpoint:
            return tcp_endpoint(host, endpoint.rpartition(":")[2])
    return endpoint


def replica_counts(status: ServeStatus, labels: Iterable[str]) -> dict[str, ReplicaCount]:
    """By label; networks that Serve does not know are left out."""
    counts = {}
    for label in labels:
        for application, overview in status.applications.items():
            deployment = overview.deployments.get(tail_name(label))
            if deployment is None:
                continue
            # Declared as an enum, but plain strings come.
            states: Mapping[Any, int] = deployment.replica_states
            starting = states.get("STARTING", 0) + states.get("RECOVERING", 0)
            ready = sum(states.get(state, 0) for state in ("RUNNING", "UPDATING", "PENDING_MIGRATION"))
            counts[label] = ReplicaCount(application, ready + starting, starting)
    return counts
