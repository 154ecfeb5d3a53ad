"""How large a message may be.  The parser compares before it allocates or copies anything."""

from __future__ import annotations

from dataclasses import dataclass

from shared.wire.messages import Limits

__all__ = ["MAX_DEPTH", "MAX_TENSORS", "WireLimits"]

MAX_TENSORS = 255
"""The tensor count is one byte of frame 0."""

MAX_DEPTH = 32
"""Nesting of the free-form fields of the local messages."""


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What one side accepts.  Sizes are in bytes.

    ``max_message_bytes`` counts all frames as they arrive; ``max_decoded_bytes`` what the tensors of one
    message may need once decoded (shape times item size, summed), whatever a codec made of them.
    """

    max_header_bytes: int = 2**20
    max_message_bytes: int = 32 * 2**20
    max_decoded_bytes: int = 256 * 2**20
    max_batch: int = 64

    @classmethod
    def from_card(cls, limits: Limits) -> WireLimits:
        """The limits of a gateway's card, for a device that wants to refuse before it sends."""
        return cls(max_message_bytes=limits.max_message_bytes, max_batch=limits.max_batch)
