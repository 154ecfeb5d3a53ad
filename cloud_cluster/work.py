"""One admitted request, and what the shell is to do with it."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import SutureError

__all__ = ["Action", "Fail", "Released", "Request", "Send"]


@dataclass(slots=True, eq=False)
class Request:
    """A request between its admission and its answer.  ``body`` is the shell's own and is never looked at.

    ``account`` is who it counts for: the device's key where it has one, else the device.  ``work_ms`` is the
    expected compute time on an idle replica.  ``deadline_ms`` is infinite for a request without a budget.
    ``abandoned``: its device is gone, the answer is for nobody.
    """

    id: int
    device: bytes
    account: bytes
    model: int
    nbytes: int
    arrived_ms: float
    deadline_ms: float
    work_ms: float
    weight: float
    body: object
    sends: int = 0
    replica: bytes | None = None
    sent_ms: float = 0.0
    queued: bool = False
    abandoned: bool = False
    # Where it stands in the queue, in turns: see cloud_cluster.fairness.
    start: float = 0.0
    length: float = 0.0


@dataclass(frozen=True, slots=True)
class Send:
    """Give the request to the replica."""

    request: Request
    replica: bytes


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer the request's device with the error; the request has left, or was never admitted."""

    request: Request
    error: SutureError


@dataclass(frozen=True, slots=True)
class Released:
    """A draining replica has answered all that it had; nothing more will be sent to it."""

    replica: bytes


Action = Send | Fail | Released
