"""Frame 0: the 24 bytes in front of every message, alike for all message types.

Little-endian, every field at a multiple of its own size::

    0  magic "SUT"   3  version   4  type   5  flags   6  codec   7  tensor count
    8  request id (8 bytes)      16  budget ms (4)    20  model (2)    22  cut (2)

The first 16 bytes keep their places in every later version, so that a request of an unknown version can
still be answered with one ERROR that carries its id.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from shared.errors import ProtocolError, VersionError
from shared.wire.messages import MessageType

__all__ = [
    "FRAME0_BYTES",
    "MAGIC",
    "NO_BUDGET",
    "SET_CUT",
    "SUPPORTED_VERSIONS",
    "VERSION",
    "Buffer",
    "Frame0",
    "budget_from_ms",
    "peek",
    "restamp",
]

Buffer = bytes | bytearray | memoryview
"""What a frame may be: ``zmq.Frame.buffer`` is a memoryview."""

MAGIC: Final = b"SUT"
VERSION: Final = 1
SUPPORTED_VERSIONS: Final = (1, 1)
"""First and last version that this side speaks."""

SET_CUT: Final = 0xFFFF
"""The cut id of a cut that is not a prefix of the unit list; INFER's ``tail_units`` then holds it."""

NO_BUDGET: Final = 0xFFFF_FFFF
"""The budget of a message without a deadline."""

_LAYOUT = struct.Struct("<3sBBBBBQIHH")
_FIXED = struct.Struct("<3sBBBBBQ")
_ID = struct.Struct("<Q")
_BUDGET = struct.Struct("<I")
_MODEL = struct.Struct("<H")
FRAME0_BYTES: Final = _LAYOUT.size

_TYPES = {int(member): member for member in MessageType}


class Frame0(msgspec.Struct, frozen=True, gc=False):
    """The fields of frame 0.  ``budget_ms`` is what is left of the deadline; 0 means that it has passed."""

    type: MessageType
    request_id: int = 0
    model: int = 0
    cut: int = 0
    codec: int = 0
    budget_ms: int = NO_BUDGET
    tensor_count: int = 0
    flags: int = 0
    version: int = VERSION

    def pack(self) -> bytes:
        """Raises ValueError when a field does not fit its place."""
        try:
            return _LAYOUT.pack(
                MAGIC,
                self.version,
                self.type,
                self.flags,
                self.codec,
                self.tensor_count,
                self.request_id,
                self.budget_ms,
                self.model,
                self.cut,
            )
        except struct.error as error:
            raise ValueError(f"{self} does not fit frame 0: {error}") from error

    @classmethod
    def unpack(cls, data: Buffer) -> Frame0:
        """Raises VersionError for a version that this side does not speak, else ProtocolError."""
        try:
            magic, version, kind, flags, codec, count, request_id, budget, model, cut = _LAYOUT.unpack(data)
        except struct.error:
            raise _refusal(data) from None
        if magic != MAGIC or version != VERSION or flags:
            raise _refusal(data)
        known = _TYPES.get(kind)
        if known is None:
            raise ProtocolError(f"message type {kind} is not one of protocol version {VERSION}")
        return cls(known, request_id, model, cut, codec, budget, count, flags, version)


def _refusal(data: Buffer) -> ProtocolError:
    """Why these bytes are not a frame 0 of our version."""
    seen = peek(data)
    if seen is None:
        return ProtocolError("these bytes do not start as a Suture message does")
    version, _, request_id = seen
    first, last = SUPPORTED_VERSIONS
    if not first <= version <= last:
        return VersionError(
            f"protocol version {version} is not spoken here; versions {first} to {last} are: "
            "update the older side",
            supported=SUPPORTED_VERSIONS,
            request_id=request_id,
        )
    if memoryview(data).nbytes != FRAME0_BYTES:
        return ProtocolError(f"frame 0 has {memoryview(data).nbytes} bytes, not {FRAME0_BYTES}")
    return ProtocolError(f"undefined flags {memoryview(data)[5]:#04x} are set")


def peek(data: Buffer) -> tuple[int, int, int] | None:
    """``(version, type, request_id)`` of a frame 0 of any version, or None when it is none.

    Never raises: it serves to address the ERROR for a message that did not parse.
    """
    if memoryview(data).nbytes < _FIXED.size:
        return None
    magic, version, kind, _, _, _, request_id = _FIXED.unpack_from(data)
    return (version, kind, request_id) if magic == MAGIC else None


def restamp(
    frame0: Buffer,
    *,
    request_id: int | None = None,
    budget_ms: int | None = None,
    model: int | None = None,
) -> bytes:
    """A copy of a frame 0 that has been parsed before, with the given fields replaced.

    For a gateway that passes a message on under its own request id.  Raises ValueError when a field does
    not fit its place or the frame is not one of ours.
    """
    copy = bytearray(frame0)
    if len(copy) != FRAME0_BYTES:
        raise ValueError(f"frame 0 has {len(copy)} bytes, not {FRAME0_BYTES}")
    try:
        if request_id is not None:
            _ID.pack_into(copy, 8, request_id)
        if budget_ms is not None:
            _BUDGET.pack_into(copy, 16, budget_ms)
        if model is not None:
            _MODEL.pack_into(copy, 20, model)
    except struct.error as error:
        raise ValueError(f"a new field does not fit frame 0: {error}") from error
    return bytes(copy)


def budget_from_ms(remaining_ms: float | None) -> int:
    """What is left of a deadline as frame 0 carries it: whole milliseconds, rounded down, never negative.

    None stands for no deadline.
    """
    if remaining_ms is None:
        return NO_BUDGET
    return int(min(max(remaining_ms, 0.0), NO_BUDGET - 1))
