"""Golden payloads of version 1: three frames each, as in tests/shared/wire/test_vectors.py.

The frames are a tensor header, the payload, and the elements that it must decode to, exact and in memory
order.  What a plain codec writes is fixed byte for byte; a compressed payload only has to be read.
"""

import struct
from pathlib import Path

import msgspec
import pytest
import torch

from shared.codec import Codec, decode, encode
from shared.codec.elements import exact_bytes
from shared.tensor import DType, TensorSpec
from shared.wire.messages import TensorHeader

VECTORS = Path(__file__).parents[3] / "tests" / "vectors"


def ramp(*shape):
    """Multiples of 1/8 between -3.75 and 8.75: exact in every float type."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 37) % 101 - 30).div(8).view(shape)


CASES = {
    "float32-channels-last": (ramp(2, 3, 4, 5).to(memory_format=torch.channels_last), Codec.FLOAT32),
    "float32-float64": (ramp(3, 5).double(), Codec.FLOAT32),
    "float32-bfloat16": (ramp(3, 5).bfloat16(), Codec.FLOAT32),
    "float32-bool": (ramp(3, 5) > 0, Codec.FLOAT32),
    "float32-scalar": (torch.tensor(1.5), Codec.FLOAT32),
    "float32-zstd": (ramp(2, 3, 4, 5), Codec.FLOAT32_ZSTD),
    "float16-saturated": (torch.tensor([[0.0, -0.1, 7e4, -1e9, float("inf"), 1.0]]), Codec.FLOAT16),
    "uint8-map": (ramp(2, 3, 4, 5), Codec.UINT8),
    "uint8-map-channels-last": (ramp(2, 3, 4, 5).to(memory_format=torch.channels_last), Codec.UINT8),
    "uint8-worked": (torch.arange(10).div(2).view(1, 1, 2, 5), Codec.UINT8),
    "uint8-sequence": (ramp(2, 9, 4), Codec.UINT8),
    "uint8-vector": (ramp(2, 20), Codec.UINT8),
    "uint8-too-small": (ramp(3, 7), Codec.UINT8),
    "uint8-int64": (torch.arange(-3, 3).view(2, 3), Codec.UINT8),
    "uint8-not-finite": (torch.full((1, 9), float("-inf")), Codec.UINT8),
    "uint8-lz4": (ramp(1, 3, 8, 8).relu(), Codec.UINT8_LZ4),
    "uint8-zstd": (ramp(1, 3, 8, 8).relu(), Codec.UINT8_ZSTD),
    "int4-map": (ramp(1, 3, 3, 3), Codec.INT4),
    "int4-worked": (torch.arange(9).div(2).view(1, 9), Codec.INT4),
    "int4-zstd": (ramp(2, 8, 9).relu(), Codec.INT4_ZSTD),
}


def read_vector(name):
    data = (VECTORS / f"payload-{name}.v1.bin").read_bytes()
    frames, position = [], 0
    while position < len(data):
        (size,) = struct.unpack_from("<I", data, position)
        frames.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    header, payload, elements = frames
    return msgspec.msgpack.decode(header, type=TensorHeader), payload, elements


def spec_of(header):
    return TensorSpec("t", DType(header.dtype), tuple(header.shape), tuple(header.order))


def elements_of(tensor, order):
    return exact_bytes(tensor.permute(order).contiguous()).numpy().tobytes()


def test_there_is_a_vector_for_every_case():
    there = {path.name for path in VECTORS.glob("payload-*") if "transform" not in path.name}
    assert there == {f"payload-{name}.v1.bin" for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_payload_is_read_to_the_bit(name):
    header, payload, elements = read_vector(name)
    tensor, _ = CASES[name]
    decoded = decode(header, payload, spec_of(header))
    assert decoded.stride() == tensor.stride()
    assert elements_of(decoded, header.order) == elements


@pytest.mark.parametrize("name", CASES)
def test_a_payload_is_written_to_the_bit(name):
    tensor, codec = CASES[name]
    header, payload, elements = read_vector(name)
    written_header, written = encode(tensor, codec, 0)
    if codec.plain is codec:
        assert written_header == header
        assert bytes(written) == payload
    else:
        # Another release of a compressor may make other bytes of the same data.
        assert written_header.codec == header.codec == codec
        assert elements_of(decode(written_header, written, spec_of(header)), header.order) == elements


if __name__ == "__main__":
    # Adds the vectors that are missing; those that exist are never rewritten.
    for case, (case_tensor, case_codec) in CASES.items():
        path = VECTORS / f"payload-{case}.v1.bin"
        if not path.exists():
            case_header, case_payload = encode(case_tensor, case_codec, 0)
            case_decoded = decode(case_header, case_payload, spec_of(case_header))
            parts = (
                msgspec.msgpack.encode(case_header),
                bytes(case_payload),
                elements_of(case_decoded, case_header.order),
            )
            path.write_bytes(b"".join(struct.pack("<I", len(part)) + part for part in parts))
