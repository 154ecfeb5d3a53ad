"""Attack: quantised payloads with scales that are NaN, infinite, negative or huge, and any zero point."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator

import msgspec
import pytest
import torch

from shared.codec import Codec, decode, encode
from shared.errors import CodecError
from shared.tensor import DType, TensorSpec
from tests.attacks.harness import Attack, joined, try_all

FLOATS = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64)
# Not scales: everything that is negative or not finite, in all its bit patterns, and what overflows float32.
BAD = (
    math.nan, -math.nan, math.inf, -math.inf, -1.0, -1e-45, 3.4e38,
    struct.unpack("<f", b"\x01\x00\x80\x7f")[0],
    struct.unpack("<f", b"\x01\x00\x80\xff")[0],
)  # fmt: skip
GOOD = (0.0, -0.0, 1e-45, 1e-38, 1.0, 1e30)


def tampered(dtype: DType, codec: Codec, scale: float, zero: int) -> list[bytes]:
    """A payload of two groups, of which the second gets this scale and zero point."""
    tensor = torch.arange(32.0).view(2, 16).to(getattr(torch, dtype.label))
    header, payload = encode(tensor, codec, 0)
    data = bytearray(payload)
    data[4:8] = struct.pack("<f", scale)
    data[9] = zero
    return [msgspec.msgpack.encode(header), bytes(data)]


def scaled(step: int) -> Iterator[bytes]:
    cases = itertools.product(FLOATS, (Codec.UINT8, Codec.INT4), (*BAD, *GOOD), range(0, 256, 5))
    for dtype, codec, scale, zero in itertools.islice(cases, 0, None, step):
        yield joined(tampered(dtype, codec, scale, zero))


ATTACK = Attack("scales and zero points", "payload", scaled)
ATTACKS = (ATTACK,)


def test_no_scale_crashes_or_bloats_the_decoder() -> None:
    tried = try_all(ATTACK, step=3)
    assert tried.inputs > 2000
    assert tried.peak_bytes < ATTACK.bound_bytes


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.label)
@pytest.mark.parametrize("codec", [Codec.UINT8, Codec.INT4], ids=lambda codec: codec.label)
def test_what_decodes_is_finite_and_what_could_not_be_is_refused(dtype: DType, codec: Codec) -> None:
    from shared.wire.messages import TensorHeader

    spec = TensorSpec("t", dtype, (2, 16), (0, 1))
    top = 255 if codec is Codec.UINT8 else 15
    for scale in BAD:
        header, payload = tampered(dtype, codec, scale, 0)
        with pytest.raises(CodecError, match="scale"):
            decode(msgspec.msgpack.decode(header, type=TensorHeader), payload, spec)
    for scale in GOOD:
        for zero in (0, 7, top):
            header, payload = tampered(dtype, codec, scale, zero)
            decoded = decode(msgspec.msgpack.decode(header, type=TensorHeader), payload, spec)
            assert bool(decoded.isfinite().all())
    if codec is Codec.INT4:
        header, payload = tampered(dtype, codec, 1.0, 16)
        with pytest.raises(CodecError, match="zero point"):
            decode(msgspec.msgpack.decode(header, type=TensorHeader), payload, spec)
