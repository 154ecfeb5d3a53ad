"""Attack: shapes whose product overflows, empty ones with huge strides, and any rank, order or dtype."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from shared.errors import CodecError, LimitError, ProtocolError
from shared.tensor import DType, TensorSpec
from shared.wire import Frame0, MessageType, WireLimits, decode_message
from tests.attacks.harness import Attack, joined, siege, try_all

TOP = 2**31 - 1
SHAPES: tuple[list[int], ...] = (
    [TOP] * 8, [TOP, TOP, 8], [2**16] * 4, [2**31, 2], [2**63, 2], [2**64 - 1], [0, TOP, TOP, TOP],
    [TOP, TOP, 0],
    [-1, 4], [1] * 9, [1] * 300, [2**30, 2**30, 0, 2**30], [65536] * 4 + [1] * 4,
)  # fmt: skip


def infer(payload: bytes = b"", **changes: Any) -> list[bytes]:
    tensor = {
        "slot": 0, "dtype": 1, "codec": 0x10, "shape": [1], "order": [0], "payload_bytes": len(payload),
        **changes,
    }  # fmt: skip
    header = {"batch": 1, "tensors": [tensor], "reply_codec": 0x10}
    return [Frame0(MessageType.INFER, 9, tensor_count=1).pack(), msgspec.msgpack.encode(header), payload]


def hostile() -> Iterator[list[bytes]]:
    for shape, dtype in itertools.product(SHAPES, (1, 4, 6, 10)):
        for payload in (b"", bytes(16)):
            yield infer(payload, shape=shape, order=list(range(len(shape))), dtype=dtype)
    for dtype in range(256):
        yield infer(bytes(4), dtype=dtype)
    for codec in range(256):
        yield infer(bytes(4), codec=codec)
    for rank in range(20):
        yield infer(bytes(4), shape=[1] * rank, order=list(range(rank)))
        yield infer(bytes(4), shape=[1] * rank, order=[0] * rank)
        yield infer(bytes(4), shape=[1] * rank, order=list(range(1, rank + 1)))
        yield infer(bytes(4), shape=[1] * rank, order=[TOP] * rank)


def hostile_messages(step: int) -> Iterator[bytes]:
    return itertools.islice(map(joined, hostile()), 0, None, step)


def hostile_payloads(step: int) -> Iterator[bytes]:
    """The same tensors, past the parser: straight to the codec."""
    for _, header, payload in itertools.islice(hostile(), 0, None, step):
        (tensor,) = msgspec.msgpack.decode(header)["tensors"]
        yield joined([msgspec.msgpack.encode(tensor), payload])


ATTACKS = (
    Attack("shapes, ranks, orders, dtypes", "message", hostile_messages),
    Attack("shapes, ranks, orders, dtypes", "payload", hostile_payloads),
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.target)
def test_no_tensor_header_crashes_or_bloats_a_parser(attack: Attack) -> None:
    tried = try_all(attack)
    assert tried.inputs > 500
    assert tried.peak_bytes < attack.bound_bytes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_shape_is_refused_before_it_is_allocated(shape: list[int]) -> None:
    with pytest.raises((LimitError, ProtocolError)):
        decode_message(infer(shape=shape, order=list(range(len(shape)))), WireLimits(max_decoded_bytes=1024))


def test_only_dtypes_of_the_table_are_read() -> None:
    read = set()
    for dtype in range(256):
        try:
            decode_message(infer(bytes(4), dtype=dtype), WireLimits())
        except ProtocolError:
            continue
        read.add(dtype)
    assert read == set(DType)


def test_a_codec_decodes_only_what_the_network_has_at_that_place() -> None:
    from shared.codec import decode
    from shared.wire.messages import TensorHeader

    spec = TensorSpec("x", DType.FLOAT32, (1,), (0,))
    for _, header, payload in hostile():
        (tensor,) = msgspec.msgpack.decode(header)["tensors"]
        if (tensor["shape"], tensor["dtype"], tensor["order"]) == ([1], 1, [0]):
            continue
        try:
            claimed = msgspec.convert(tensor, TensorHeader)
        except msgspec.ValidationError:
            continue
        with pytest.raises(CodecError):
            decode(claimed, payload, spec)


async def test_a_gateway_serves_on_among_them() -> None:
    async with siege() as besieged:
        for at_replicas in (False, True):
            assert await besieged.throw(itertools.islice(hostile(), 0, None, 9), at_replicas) > 60
            await besieged.serves()
