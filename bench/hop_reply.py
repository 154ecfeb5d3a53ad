"""What every path of the hop bench answers, whoever carries it.

The first eight bytes are the size of what arrived, so that an answer that did not see its request is
found out.
"""

from __future__ import annotations

__all__ = ["DIGEST", "MODEL", "REPLY_BYTES", "check_reply", "reply_to"]

MODEL = "no-op"
DIGEST = "sha256:" + "0" * 64
REPLY_BYTES = 4000
"""What a thousand scores take."""

_PADDING = bytes(REPLY_BYTES - 8)


def reply_to(size_bytes: int) -> bytes:
    return size_bytes.to_bytes(8, "little") + _PADDING


def check_reply(sent_bytes: int, reply: bytes | memoryview) -> None:
    """Raises ValueError when this is no reply to a request of this many bytes."""
    if len(reply) != REPLY_BYTES:
        raise ValueError(f"a reply of {len(reply)} bytes, not {REPLY_BYTES}")
    seen_bytes = int.from_bytes(reply[:8], "little")
    if seen_bytes != sent_bytes:
        raise ValueError(f"sent {sent_bytes} bytes, but the other side saw {seen_bytes}")
