"""Messages to frames and back: ``[frame 0, header, payload, payload, ...]``.

The parser is strict and total: whatever the bytes, it returns a message whose every field is within the
limits, or raises ProtocolError, LimitError or VersionError.  Nothing is allocated from a size that a
message claims; payloads are views of the frames that were passed in, never copies.

LOAD is the exception to the frame list: a subscriber must receive it whole or not at all, so frame 0 and
header travel as one frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from shared.errors import LimitError, ProtocolError, RefusedError, SutureError, error_from_code
from shared.tensor import DType
from shared.wire.frame import FRAME0_BYTES, NO_BUDGET, SET_CUT, Buffer, Frame0
from shared.wire.limits import MAX_DEPTH, MAX_TENSORS, WireLimits
from shared.wire.messages import (
    MAX_TEXT,
    Announce,
    Cancel,
    Card,
    Credit,
    ErrorReply,
    Goodbye,
    Header,
    Hello,
    Infer,
    LoadReport,
    LocalInfer,
    LocalResult,
    LocalState,
    LocalStatus,
    MessageType,
    Ping,
    Pong,
    ReplicaHello,
    Result,
    TensorHeader,
)

__all__ = ["Message", "decode_message", "encode_message", "error_from_reply", "error_reply"]

_HEADERS: Final[dict[MessageType, type[Header]]] = {
    MessageType.HELLO: Hello,
    MessageType.CARD: Card,
    MessageType.ANNOUNCE: Announce,
    MessageType.INFER: Infer,
    MessageType.RESULT: Result,
    MessageType.ERROR: ErrorReply,
    MessageType.PING: Ping,
    MessageType.PONG: Pong,
    MessageType.CREDIT: Credit,
    MessageType.GOODBYE: Goodbye,
    MessageType.LOAD: LoadReport,
    MessageType.REPLICA_HELLO: ReplicaHello,
    MessageType.LOCAL_INFER: LocalInfer,
    MessageType.LOCAL_RESULT: LocalResult,
    MessageType.CANCEL: Cancel,
    MessageType.LOCAL_STATUS: LocalStatus,
    MessageType.LOCAL_STATE: LocalState,
}
_TYPE_OF = {header: kind for kind, header in _HEADERS.items()}
_DECODERS = {kind: msgspec.msgpack.Decoder(header) for kind, header in _HEADERS.items()}
_CARRIERS = (Infer, Result, LocalInfer, LocalResult)
_ENCODER = msgspec.msgpack.Encoder()

_ITEMSIZE = {int(dtype): dtype.itemsize for dtype in DType}


@dataclass(frozen=True, slots=True)
class Message:
    """One parsed message.  ``payloads`` are views: they live as long as the frames they came in."""

    frame0: Frame0
    header: Any
    payloads: tuple[memoryview, ...] = ()

    @property
    def type(self) -> MessageType:
        return self.frame0.type

    @property
    def request_id(self) -> int:
        return self.frame0.request_id

    @property
    def model(self) -> int:
        return self.frame0.model

    @property
    def cut(self) -> int:
        return self.frame0.cut

    @property
    def codec(self) -> int:
        return self.frame0.codec

    @property
    def budget_ms(self) -> int:
        return self.frame0.budget_ms


def encode_message(
    header: Header,
    payloads: Sequence[Buffer] = (),
    *,
    request_id: int = 0,
    model: int = 0,
    cut: int = 0,
    codec: int = 0,
    budget_ms: int = NO_BUDGET,
) -> list[Buffer]:
    """The frames of a message; its type follows from the header's class.  Payloads are not copied.

    Raises ValueError when a field does not fit frame 0 or the payloads are not those of the header.
    """
    kind = _TYPE_OF[type(header)]
    if len(payloads) != _payload_count(header):
        raise ValueError(f"{kind.name} describes {_payload_count(header)} payloads, got {len(payloads)}")
    frame0 = Frame0(kind, request_id, model, cut, codec, budget_ms, len(payloads)).pack()
    body = _ENCODER.encode(header)
    if kind is MessageType.LOAD:
        return [frame0 + body]
    return [frame0, body, *payloads]


def decode_message(frames: Sequence[Buffer], limits: WireLimits) -> Message:
    """Parse and check the frames of one message, routing frames already taken off.

    Raises VersionError, LimitError or ProtocolError, and nothing else, for any input.
    """
    if not frames:
        raise ProtocolError("a message without frames")
    if len(frames) > MAX_TENSORS + 2:
        raise LimitError(f"a message of {len(frames)} frames; at most {MAX_TENSORS + 2} are accepted")
    views = [memoryview(frame) for frame in frames]
    total = sum(view.nbytes for view in views)
    if total > limits.max_message_bytes:
        raise LimitError(f"a message of {total} bytes; at most {limits.max_message_bytes} are accepted")
    frame0 = Frame0.unpack(views[0][:FRAME0_BYTES] if len(views) == 1 else views[0])
    if frame0.type is MessageType.LOAD:
        if len(views) != 1:
            raise ProtocolError(f"LOAD is one frame, not {len(views)}")
        views = [views[0][:FRAME0_BYTES], views[0][FRAME0_BYTES:]]
    elif len(views) == 1:
        raise ProtocolError(f"{frame0.type.name} needs a header frame after frame 0")
    payloads = tuple(views[2:])
    if len(payloads) != frame0.tensor_count:
        raise ProtocolError(f"frame 0 counts {frame0.tensor_count} payloads, {len(payloads)} came")
    header = _decode_header(frame0.type, views[1], limits)
    _check_payloads(frame0, header, payloads, limits)
    return Message(frame0, header, payloads)


def error_reply(error: SutureError) -> ErrorReply:
    """The header that reports an error to the other side."""
    retry_after_ms = error.retry_after_ms if isinstance(error, RefusedError) else 0.0
    return ErrorReply(code=error.code, message=str(error)[:MAX_TEXT], retry_after_ms=retry_after_ms)


def error_from_reply(reply: ErrorReply) -> SutureError:
    """The error that the other side reported, to be raised here."""
    return error_from_code(reply.code, reply.message, reply.retry_after_ms)


def _decode_header(kind: MessageType, body: memoryview, limits: WireLimits) -> Header:
    if body.nbytes > limits.max_header_bytes:
        raise LimitError(f"a header of {body.nbytes} bytes; at most {limits.max_header_bytes} are accepted")
    try:
        return _DECODERS[kind].decode(body)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"the header of {kind.name} is not valid: {error}") from error


def _payload_count(header: Header) -> int:
    if isinstance(header, _CARRIERS):
        return len(header.tensors)
    return 1 if isinstance(header, Ping) and header.probe_bytes else 0


def _check_payloads(
    frame0: Frame0, header: Header, payloads: tuple[memoryview, ...], limits: WireLimits
) -> None:
    expected = _payload_count(header)
    if len(payloads) != expected:
        raise ProtocolError(f"{frame0.type.name} describes {expected} payloads, {len(payloads)} came")
    if isinstance(header, Ping) and payloads and payloads[0].nbytes != header.probe_bytes:
        raise ProtocolError(f"a probe of {payloads[0].nbytes} bytes calls itself {header.probe_bytes}")
    if isinstance(header, Infer):
        if header.batch > limits.max_batch:
            raise LimitError(f"a batch of {header.batch}; at most {limits.max_batch} are accepted")
        if (frame0.cut == SET_CUT) != bool(header.tail_units):
            raise ProtocolError(f"tail_units belong to cut {SET_CUT} and to no other, not to {frame0.cut}")
    if isinstance(header, _CARRIERS):
        _check_tensors(header.tensors, payloads, limits)
    if isinstance(header, LocalInfer | LocalResult):
        _check_plain(header.tree)
    if isinstance(header, LocalInfer):
        _check_plain(header.objective)
    if isinstance(header, LocalResult):
        _check_plain(header.decision)
    if isinstance(header, LocalState):
        _check_plain(header.state)


def _check_tensors(
    headers: Sequence[TensorHeader], payloads: tuple[memoryview, ...], limits: WireLimits
) -> None:
    if len({header.slot for header in headers}) != len(headers):
        raise ProtocolError("two tensors of one message have the same slot")
    decoded = 0
    for header, payload in zip(headers, payloads, strict=True):
        itemsize = _ITEMSIZE.get(header.dtype)
        if itemsize is None:
            raise ProtocolError(f"slot {header.slot}: dtype {header.dtype} is not in the table")
        rank = len(header.shape)
        if len(header.order) != rank or sorted(header.order) != list(range(rank)):
            raise ProtocolError(f"slot {header.slot}: order {header.order} is no permutation of {rank}")
        if header.payload_bytes != payload.nbytes:
            raise ProtocolError(
                f"slot {header.slot}: a payload of {payload.nbytes} bytes calls itself {header.payload_bytes}"
            )
        # An empty tensor counts by its other dimensions: strides are computed from them.
        decoded += itemsize * math.prod(dim or 1 for dim in header.shape)
        if decoded > limits.max_decoded_bytes:
            raise LimitError(
                f"slot {header.slot} brings the decoded size to {decoded} bytes; "
                f"at most {limits.max_decoded_bytes} are accepted"
            )


def _check_plain(value: Any) -> None:
    """Refuse what msgpack has and a plain nested structure has not; bounds the depth without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    raise ProtocolError("a free-form field has a key that is not text")
                deeper.extend(item.values())
            elif isinstance(item, list):
                deeper.extend(item)
            elif isinstance(item, float):
                if not math.isfinite(item):
                    raise ProtocolError("a free-form field holds a number that is not finite")
            elif item is not None and not isinstance(item, bool | int | str):
                raise ProtocolError(f"a free-form field holds a {type(item).__name__}")
        if not deeper:
            return
        level = deeper
    raise ProtocolError(f"a free-form field is nested deeper than {MAX_DEPTH}")
