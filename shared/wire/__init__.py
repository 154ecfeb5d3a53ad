"""Bytes to messages and back, with every limit checked before anything is allocated.

``docs/protocol.md`` is the authority.  :mod:`~shared.wire.messages` has the typed headers,
:mod:`~shared.wire.frame` the fixed frame 0, :mod:`~shared.wire.protocol` the parser.
"""

from shared.wire.frame import NO_BUDGET, SET_CUT, VERSION, Buffer, Frame0, budget_from_ms, peek, restamp
from shared.wire.limits import WireLimits
from shared.wire.messages import MessageType
from shared.wire.protocol import Message, decode_message, encode_message, error_from_reply, error_reply

__all__ = [
    "NO_BUDGET",
    "SET_CUT",
    "VERSION",
    "Buffer",
    "Frame0",
    "Message",
    "MessageType",
    "WireLimits",
    "budget_from_ms",
    "decode_message",
    "encode_message",
    "error_from_reply",
    "error_reply",
    "peek",
    "restamp",
]
