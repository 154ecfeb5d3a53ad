"""The transform behind encode and decode: as any other codec, and a typed error for all else."""

import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import TRANSFORMS, Codec, decode, encode, max_payload_bytes
from shared.codec.threads import one_thread
from shared.codec.transform import tables_from_bytes, tables_to_bytes
from shared.errors import CodecError
from shared.wire.messages import TensorHeader
from tests.shared.codec.transform.samples import maps, spec_of, tables_of_maps


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def error_of(tensor, codec):
    header, payload = encode(tensor, codec, 3, tables_of_maps())
    assert header.codec == codec
    assert header.payload_bytes == len(payload) <= max_payload_bytes(spec_of(tensor), codec)
    decoded = decode(header, payload, spec_of(tensor, tuple(header.order)), tables_of_maps())
    assert decoded.stride() == tensor.stride()
    return float((decoded - tensor).norm() / tensor.norm()), len(payload)


def test_every_rung_of_the_ladder_saves_bytes_and_costs_fidelity():
    tensor = maps(1, seed=5)
    errors, sizes = zip(*(error_of(tensor, codec) for codec in TRANSFORMS), strict=True)
    assert list(errors) == sorted(errors)
    assert list(sizes) == sorted(sizes, reverse=True)
    assert errors[0] < 0.02
    assert sizes[0] < len(encode(tensor, Codec.UINT8_ZSTD, 3)[1])
    assert sizes[4] < sizes[0] / 3


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches_and_memory_orders_travel(batch):
    tensor = maps(batch, seed=batch)
    for each in (tensor, tensor.to(memory_format=torch.channels_last)):
        error, _ = error_of(each, Codec.TRANSFORM_2)
        assert error < 0.05


@pytest.mark.parametrize(
    "tensor",
    [
        maps(1, features=9),  # of which the tables are not
        torch.full((1, 8, 14, 14), float("nan")),
        maps(1).double(),
        torch.arange(8),
    ],
)
def test_what_the_tables_cannot_code_is_sent_exactly(tensor):
    header, payload = encode(tensor, Codec.TRANSFORM_3, 0, tables_of_maps())
    assert header.codec in (Codec.FLOAT32, Codec.FLOAT32_ZSTD)
    assert torch.equal(decode(header, payload, spec_of(tensor)).nan_to_num(7), tensor.nan_to_num(7))


def test_without_tables_nothing_is_coded_and_nothing_decoded():
    tensor = maps(1)
    assert encode(tensor, Codec.TRANSFORM_1, 0)[0].codec == Codec.FLOAT32_ZSTD
    header, payload = encode(tensor, Codec.TRANSFORM_1, 0, tables_of_maps())
    with pytest.raises(CodecError, match=r"arrived in transform-1; this side has no tables"):
        decode(header, payload, spec_of(tensor))


def test_a_payload_of_another_step_than_announced_is_refused():
    tensor = maps(1)
    header, payload = encode(tensor, Codec.TRANSFORM_4, 0, tables_of_maps())
    other = msgspec.structs.replace(header, codec=Codec.TRANSFORM_5)
    with pytest.raises(CodecError, match=r"in transform-5 but at step 12"):
        decode(other, payload, spec_of(tensor), tables_of_maps())


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(TRANSFORMS), st.data())
def test_damage_is_a_codec_error_or_a_tensor_of_the_spec(codec, data):
    tensor = maps(2)
    header, payload = encode(tensor, codec, 0, tables_of_maps())
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    damaged = damaged[: cut or None]
    header = msgspec.structs.replace(header, payload_bytes=len(damaged))
    try:
        decoded = decode(header, bytes(damaged), spec_of(tensor), tables_of_maps())
    except CodecError:
        return
    assert decoded.shape == tensor.shape


VECTORS = Path(__file__).parents[3] / "tests" / "vectors"
VECTOR, TABLES = VECTORS / "payload-transform-map.v1.bin", VECTORS / "transform-map.safetensors"


def test_the_golden_payload_is_read_by_its_golden_tables():
    """Its frames, as in test_payload_vectors.py: tensor header, payload, elements."""
    data, frames = VECTOR.read_bytes(), []
    while data:
        (size,) = struct.unpack_from("<I", data)
        frames.append(data[4 : 4 + size])
        data = data[4 + size :]
    tables = tables_from_bytes(TABLES.read_bytes())
    header = msgspec.msgpack.decode(frames[0], type=TensorHeader)
    assert tables_to_bytes(tables) == TABLES.read_bytes()
    shape = tuple(header.shape)
    decoded = decode(header, frames[1], spec_of(torch.zeros(shape), tuple(header.order)), tables)
    elements = np.frombuffer(frames[2], dtype="<f4").reshape(shape)
    # Another machine may sum in another order.
    np.testing.assert_allclose(decoded.numpy(), elements, atol=1e-4)
    again, payload = encode(decoded, Codec(header.codec), header.slot, tables)
    assert again.codec == header.codec
    assert len(payload) == pytest.approx(len(frames[1]), rel=0.1)


if __name__ == "__main__":
    # Made once; it is never rewritten.
    if not VECTOR.exists():
        made = maps(2, seed=7)
        made_header, made_payload = encode(made, Codec.TRANSFORM_4, 5, tables_of_maps())
        made_decoded = decode(made_header, made_payload, spec_of(made), tables_of_maps())
        parts = (
            msgspec.msgpack.encode(made_header),
            bytes(made_payload),
            made_decoded.numpy().tobytes(),
        )
        TABLES.write_bytes(tables_to_bytes(tables_of_maps()))
        VECTOR.write_bytes(b"".join(struct.pack("<I", len(part)) + part for part in parts))
