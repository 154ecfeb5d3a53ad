"""A peer of another release: fields that this one does not know, in every header and in what headers hold."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.wire import MessageType, WireLimits, decode_message, encode_message
from shared.wire.frame import FRAME0_BYTES

VECTORS = sorted(
    path
    for path in (Path(__file__).parents[2] / "vectors").glob("*.v1.bin")
    if not path.name.startswith("payload-")
)
# Their keys are not fields, but what applications, plans and networks call their own.
FREE_FORM = frozenset(("tree", "objective", "decision", "breakdown", "state"))
TOMORROW = {
    "a field of tomorrow": 2.5, "and one": None, "with depth": {"a": [1, {"b": b"c"}]}, "": "no name",
    "wide": list(range(300)),
}  # fmt: skip


def frames_of(path: Path) -> list[bytes]:
    data, frames, position = path.read_bytes(), [], 0
    while position < len(data):
        (size,) = struct.unpack_from("<I", data, position)
        frames.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    return frames


def body_of(frames: list[bytes]) -> bytes:
    return frames[1] if len(frames) > 1 else frames[0][FRAME0_BYTES:]


def with_body(frames: list[bytes], body: bytes) -> list[bytes]:
    return [frames[0], body, *frames[2:]] if len(frames) > 1 else [frames[0][:FRAME0_BYTES] + body]


def newer(value: Any) -> Any:
    """The same with unknown fields in every map that has known ones, before and behind them."""
    if isinstance(value, list):
        return [newer(item) for item in value]
    if not isinstance(value, dict):
        return value
    known = {key: item if key in FREE_FORM else newer(item) for key, item in value.items()}
    return {"first of tomorrow": [], **known, **TOMORROW}


def test_every_message_type_is_tried() -> None:
    assert {decode_message(frames_of(path), WireLimits()).type for path in VECTORS} == set(MessageType)


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.name)
def test_unknown_fields_are_ignored_wherever_they_stand(path: Path) -> None:
    frames = frames_of(path)
    body = newer(msgspec.msgpack.decode(body_of(frames)))
    assert len(body) > len(msgspec.msgpack.decode(body_of(frames)))
    read = decode_message(with_body(frames, msgspec.msgpack.encode(body)), WireLimits())
    known = decode_message(frames, WireLimits())
    assert read.header == known.header
    assert read.payloads == known.payloads


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.name)
def test_what_was_read_is_passed_on_without_them(path: Path) -> None:
    """What this release writes again has its own fields and no others."""
    frames = frames_of(path)
    known = decode_message(frames, WireLimits())
    again = encode_message(known.header, known.payloads, request_id=known.request_id)
    fields = set(msgspec.msgpack.decode(body_of([bytes(frame) for frame in again])))
    assert set(msgspec.msgpack.decode(body_of(frames))) <= fields
    assert fields <= {field.encode_name for field in msgspec.structs.fields(known.header)}


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.name)
def test_a_field_that_is_missing_is_either_optional_or_refused_by_name(path: Path) -> None:
    from shared.errors import ProtocolError

    frames = frames_of(path)
    body = msgspec.msgpack.decode(body_of(frames))
    header = decode_message(frames, WireLimits()).header
    for field in msgspec.structs.fields(header):
        if not field.required or field.encode_name not in body:
            continue
        lacking = {key: value for key, value in body.items() if key != field.encode_name}
        with pytest.raises(ProtocolError, match=field.encode_name):
            decode_message(with_body(frames, msgspec.msgpack.encode(lacking)), WireLimits())
