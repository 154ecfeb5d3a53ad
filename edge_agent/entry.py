"""One request in the table: what is kept of it, what is counted, and what a missed deadline says."""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.actions import Fallback, Phase
from shared.errors import DeadlineError

__all__ = ["Counters", "Entry", "missed"]


@dataclass(slots=True)
class Counters:
    """Totals since the start.  ``local_completions`` are those begun for requests planned for the cloud."""

    submitted: int = 0
    overloaded: int = 0
    completed_by_cloud: int = 0
    completed_by_device: int = 0
    local_completions: int = 0
    failed: int = 0
    cancelled: int = 0
    late_answers: int = 0


@dataclass(slots=True)
class Entry:
    request_id: int
    deadline_ms: float
    on_device: bool
    rest_ms: float
    answer_ms: float
    held_bytes: int
    spread: float = 1.0
    payload_bytes: int = 0
    phase: Phase = Phase.PREFIX
    sent_ms: float = 0.0
    guarded: bool = True
    moving_until_ms: float = 0.0
    fallback: Fallback | None = None
    finishing: bool = False
    """The device computes the rest, and nobody has told it to stop."""


_WHILE = {
    Phase.PREFIX: "the device was still computing its part; allow more time",
    Phase.SENT: "the cloud had not answered and the device alone could not have made it; allow more time",
    Phase.MOVING: "the gateway was lost and no other had taken the request; allow more time",
    Phase.RACING: "neither the cloud nor the device had finished; allow more time",
    Phase.LOCAL: "the cloud was of no help and the device had not finished; allow more time",
    Phase.DECODING: "the answer was being decoded; allow a little more time",
}


def missed(entry: Entry) -> DeadlineError:
    return DeadlineError(f"the deadline passed: {_WHILE[entry.phase]} (deadline_ms)")
