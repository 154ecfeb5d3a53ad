"""Attack: lengths that are not true: of msgpack arrays, maps and texts, of payloads, probes and batches."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import msgspec
import pytest

from shared.errors import LimitError, ProtocolError
from shared.wire import Frame0, MessageType, WireLimits, decode_message
from tests.attacks.harness import Attack, joined, siege, try_all, vectors
from tests.attacks.test_shapes import infer

# Array, map, text, binary and extension of msgpack, with a length of four bytes.
CLAIMS = (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")
LENGTHS = (1, 255, 65_536, 2**24, 2**31 - 1, 2**32 - 1)
FIELDS = ("models", "tensors", "tree", "unit_ms", "reason", "tail_units", "shape", "not a field")


def claims() -> Iterator[list[bytes]]:
    for kind in MessageType:
        for claim, length, field in itertools.product(CLAIMS, LENGTHS, FIELDS):
            body = b"\x81" + msgspec.msgpack.encode(field) + claim + struct.pack(">I", length)
            yield [Frame0(kind, 9).pack(), body]
        yield [Frame0(kind, 9).pack(), b"\x91" * 60_000]
        yield [Frame0(kind, 9).pack(), b"\x81\xa4tree" + b"\x91" * 5000 + b"\x00"]


def lies() -> Iterator[list[bytes]]:
    yield from claims()
    for claimed in (0, 3, 5, 2**31, 2**48, 2**63):
        yield infer(bytes(4), payload_bytes=claimed)
        yield [
            Frame0(MessageType.PING, 9, tensor_count=1).pack(),
            msgspec.msgpack.encode({"probe_bytes": claimed}),
            bytes(4),
        ]


def lying_messages(step: int) -> Iterator[bytes]:
    yield from itertools.islice(map(joined, lies()), 0, None, step)
    # The vectors' own container, which only tests read, lies as well.
    for frames in vectors().values():
        yield struct.pack("<I", 2**32 - 1) + joined(frames)


# A header may have 64 kB here; msgspec makes lists of small integers of some of it.
ATTACK = Attack("lengths that lie", "message", lying_messages, 4 * 2**20)
ATTACKS = (ATTACK,)


def test_no_claimed_length_crashes_or_bloats_the_parser() -> None:
    tried = try_all(ATTACK, step=3)
    assert tried.inputs > 1000
    assert tried.peak_bytes < ATTACK.bound_bytes


@pytest.mark.parametrize("claimed", [0, 3, 5, 2**31, 2**48, 2**63])
def test_a_payload_or_a_probe_of_another_size_is_refused(claimed: int) -> None:
    probe = [
        Frame0(MessageType.PING, 9, tensor_count=1).pack(),
        msgspec.msgpack.encode({"probe_bytes": claimed}),
        bytes(4),
    ]
    for frames in (infer(bytes(4), payload_bytes=claimed), probe):
        with pytest.raises(ProtocolError):
            decode_message(frames, WireLimits())


def test_a_message_is_refused_for_its_size_before_it_is_read() -> None:
    limits = WireLimits(max_message_bytes=1000, max_header_bytes=100)
    with pytest.raises(LimitError, match="1024 bytes"):
        decode_message([bytes(24), bytes(1000)], limits)
    with pytest.raises(LimitError, match="header of 101"):
        decode_message([Frame0(MessageType.HELLO).pack(), bytes(101)], limits)
    frames = infer(bytes(4))
    frames[1] = frames[1].replace(b"\xa5batch\x01", b"\xa5batch\x41")
    with pytest.raises(LimitError, match="batch of 65"):
        decode_message(frames, WireLimits())


async def test_a_gateway_serves_on_among_them() -> None:
    async with siege() as besieged:
        for at_replicas in (False, True):
            assert await besieged.throw(itertools.islice(lies(), 0, None, 37), at_replicas) > 90
            await besieged.serves()
