"""The stages of one request, in order: the same names for what is predicted and for what is measured."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["POSITION", "STAGES", "Stage"]


class Stage(StrEnum):
    """A request's latency is the sum of its stages.  A request that stays on the device has only
    ``queue``, ``device`` and ``overhead``."""

    QUEUE = "queue"
    """Waiting for the device's own worker."""
    DEVICE = "device"
    """Units below the cut, on the device."""
    ENCODE = "encode"
    """The cut's tensors into bytes."""
    UPLINK = "uplink"
    """The payload's bytes at the uplink's rate: the gateway's arrival span."""
    NETWORK = "network"
    """The round trip of an empty message, and whatever else lies between the two sides."""
    WAIT = "wait"
    """In the gateway's queue and the replica's."""
    DECODE = "decode"
    """Bytes into tensors, in the replica."""
    CLOUD = "cloud"
    """Units above the cut, in the replica."""
    RESULT_ENCODE = "result_encode"
    """The outputs into bytes, in the replica."""
    DOWNLINK = "downlink"
    """The outputs' bytes at the downlink's rate."""
    RESULT_DECODE = "result_decode"
    """The outputs' bytes into tensors, on the device."""
    OVERHEAD = "overhead"
    """The agent's own bookkeeping: all that no other stage holds."""


STAGES: tuple[Stage, ...] = tuple(Stage)
POSITION: dict[Stage, int] = {stage: position for position, stage in enumerate(STAGES)}
"""Where a stage's row is in the arrays of :mod:`shared.plan.rows`."""
