"""Whatever the bytes, decoding returns a tensor of the spec or raises CodecError."""

import msgspec
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import Codec, decode, encode
from shared.errors import CodecError
from shared.tensor import DType, TensorSpec
from shared.wire.messages import TensorHeader

TENSOR = torch.arange(96.0).sub(40).relu().view(2, 3, 4, 4)
SPEC = TensorSpec("t", DType.FLOAT32, (2, 3, 4, 4), (0, 1, 2, 3))
PAYLOADS = {codec: encode(TENSOR, codec, 0) for codec in Codec}


def decode_anything(header, payload, spec=SPEC):
    try:
        decoded = decode(header, payload, spec)
    except CodecError:
        return
    assert decoded.shape == spec.shape
    assert decoded.untyped_storage().nbytes() <= 2 * spec.nbytes


@settings(max_examples=400)
@given(st.sampled_from(Codec), st.data())
def test_damaged_payloads(codec, data):
    header, payload = PAYLOADS[codec]
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        damaged[position] = data.draw(st.integers(0, 255))
    decode_anything(header, bytes(damaged))


def test_every_bit_flipped_and_every_truncation():
    for header, payload in PAYLOADS.values():
        for size in range(0, header.payload_bytes, 7):
            shorter = msgspec.structs.replace(header, payload_bytes=size)
            decode_anything(shorter, bytes(payload)[:size])
        for bit in range(0, 8 * header.payload_bytes, 3):
            damaged = bytearray(payload)
            damaged[bit // 8] ^= 1 << bit % 8
            decode_anything(header, damaged)


@settings(max_examples=300)
@given(st.sampled_from(Codec), st.binary(max_size=500))
def test_noise(codec, noise):
    header, _ = PAYLOADS[codec]
    decode_anything(msgspec.structs.replace(header, codec=codec, payload_bytes=len(noise)), noise)


@given(
    st.builds(
        TensorHeader,
        slot=st.just(0),
        dtype=st.integers(0, 255),
        codec=st.integers(0, 255),
        shape=st.lists(st.integers(0, 2**31 - 1), max_size=8),
        order=st.lists(st.integers(0, 8), max_size=8),
        payload_bytes=st.integers(0, 400),
    ),
    st.binary(max_size=400),
)
def test_any_header(header, payload):
    decode_anything(header, payload)
