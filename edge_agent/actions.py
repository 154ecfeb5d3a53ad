"""The vocabulary of the request table: phases of a request, and what the shell is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from shared.errors import SutureError

__all__ = [
    "Action",
    "Complete",
    "Decode",
    "Fail",
    "Fallback",
    "FinishLocally",
    "Phase",
    "RunPrefix",
    "Send",
    "Source",
    "StopLocal",
]


class Phase(Enum):
    PREFIX = "prefix"
    SENT = "sent"
    MOVING = "moving"
    RACING = "racing"
    LOCAL = "local"
    DECODING = "decoding"


class Source(StrEnum):
    """Whose answer completed a request."""

    CLOUD = "cloud"
    DEVICE = "device"


class Fallback(StrEnum):
    """Why the device finished a request that was planned for the cloud."""

    UNREACHABLE = "unreachable"
    LATE = "late"
    REFUSED = "refused"
    CLOUD_ERROR = "cloud-error"
    LINK_FULL = "link-full"
    UNDECODABLE = "undecodable"


@dataclass(frozen=True, slots=True)
class RunPrefix:
    """Run the units below the cut and encode what crosses it; answer with ``prefix_done``."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Send:
    """Hand the payload to the link with this budget; report ``send_failed`` if it takes no more."""

    request_id: int
    budget_ms: float


@dataclass(frozen=True, slots=True)
class FinishLocally:
    """Run the units above the cut on the device; answer with ``local_done`` or ``local_failed``."""

    request_id: int


@dataclass(frozen=True, slots=True)
class StopLocal:
    """The local completion is no longer wanted."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode the answer that has just arrived; report ``decode_done`` or ``decode_failed``."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Complete:
    """The end: an answer from ``source``.  ``fallback`` says why it is not the planned one."""

    request_id: int
    source: Source
    fallback: Fallback | None


@dataclass(frozen=True, slots=True)
class Fail:
    """The end: no answer.  Work of this request that still runs is no longer wanted."""

    request_id: int
    error: SutureError


Action = RunPrefix | Send | FinishLocally | StopLocal | Decode | Complete | Fail
