"""What every path of the hop bench answers, whoever carries it.

The first eight bytes are the size of what arrived, so that an answer that did not see its request is
found out.
"""

from __future__ import annotations

__all__ = ["DIGEST", "MODEL", "REPLY_BYTES", "reply_to", "size_of"]

MODEL = "no-op"
DIGEST = "sha256:" + "0" * 64
REPLY_BYTES = 4000
"""What a thousand scores take."""

_PADDING = bytes(REPLY_BYTES - 8)


def reply_to(size_bytes: int) -> bytes:
    return size_bytes.to_bytes(8, "little") + _PADDING


def size_of(reply: bytes | bytearray | memoryview) -> int:
    """The size that the other side saw.  Raises ValueError when this is no reply of ours."""
    if len(reply) != REPLY_BYTES:
        raise ValueError(f"a reply of {len(reply)} bytes, not {REPLY_BYTES}")
    return int.from_bytes(reply[:8], "little")
