from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec.transform import SEGMENTS, STEPS, decode, encode, fit, ideal_bits, is_coded_by, pack, unpack
from shared.errors import CodecError
from shared.tensor import DType, TensorSpec
from tests.shared.codec.transform.samples import maps, spec_of, tables_of_maps


def sent(tensor: torch.Tensor, step: int, segments: int = 1) -> list[bytes]:
    coded = encode(tensor, tables_of_maps(), step, segments)
    assert coded is not None
    return coded


def error(tensor: torch.Tensor, other: torch.Tensor) -> float:
    return float((tensor - other).norm() / (other - other.mean()).norm())


def test_coarser_steps_take_fewer_bytes_and_lose_more() -> None:
    tensor = maps(1, seed=5)
    kept = tensor.clone()
    sizes, errors = [], []
    for step in range(0, STEPS, 3):
        coded = sent(tensor, step)
        decoded = decode(coded, tables_of_maps(), spec_of(tensor))
        assert (decoded.step, decoded.segments, decoded.of, decoded.is_whole) == (step, 1, 1, True)
        sizes.append(sum(map(len, coded)))
        errors.append(error(decoded.tensor, tensor))
    assert torch.equal(tensor, kept)
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert sizes[0] < tensor.numel()
    assert errors[0] < 0.02
    # The rate of a step is what the tables expect of a sample that they were not fitted to.
    assert sizes[3] == pytest.approx(tables_of_maps().expected_bits[9] / 8, rel=0.15)


def test_no_coefficient_is_off_by_more_than_half_a_step() -> None:
    tables, tensor = tables_of_maps(), maps(2, seed=6)
    for step in (0, 13):
        arrived = decode(sent(tensor, step), tables, spec_of(tensor)).tensor
        coefficients = tables.geometry.forward(arrived - tensor)
        ends = (*tables.groups[1:], len(coefficients))
        for base, start, end in zip(tables.forward, tables.groups, ends, strict=True):
            off = (
                torch.from_numpy(base)
                @ coefficients[start:end]
                * torch.from_numpy(tables.weight[start:end, :, None])
            )
            # Half a step, and half of one more for values that are decoded off the middle.
            assert off.abs().max() <= 2 ** (step / 4) * 1.001


def test_values_are_decoded_where_they_mostly_are_and_not_in_the_middle_of_their_step() -> None:
    tables, tensor = tables_of_maps(), maps(8, seed=13)
    middle = dataclasses.replace(tables, offset=np.zeros_like(tables.offset))
    for step in (8, 14):
        coded = sent(tensor, step)
        at_mean, at_middle = (
            error(decode(coded, each, spec_of(tensor)).tensor, tensor) for each in (tables, middle)
        )
        assert at_mean < 0.999 * at_middle


@pytest.mark.parametrize("segments", [2, 4])
def test_each_segment_makes_the_tensor_finer(segments: int) -> None:
    tables, tensor = tables_of_maps(), maps(1, seed=7)
    coded = sent(tensor, 6, segments)
    assert len(coded) == segments
    errors = []
    for count in range(1, segments + 1):
        decoded = decode(coded[:count], tables, spec_of(tensor))
        assert (decoded.segments, decoded.of, decoded.is_whole) == (count, segments, count == segments)
        errors.append(error(decoded.tensor, tensor))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]
    whole = decode(sent(tensor, 6), tables, spec_of(tensor)).tensor
    assert torch.equal(whole, decode(coded, tables, spec_of(tensor)).tensor)
    assert sum(map(len, coded)) <= len(sent(tensor, 6)[0]) + 16 * segments
    # Parts of the same expected size.
    sizes = [len(segment) for segment in coded]
    assert max(sizes) < 2 * min(sizes)


def test_a_sample_decodes_to_the_same_values_whatever_its_neighbours_are() -> None:
    tables, batch = tables_of_maps(), maps(3, seed=8)
    together = decode(sent(batch, 8), tables, spec_of(batch)).tensor
    for index in range(3):
        alone = decode(sent(batch[index : index + 1], 8), tables, spec_of(batch[:1])).tensor
        assert torch.allclose(together[index], alone[0], atol=1e-5)


def test_memory_order_is_that_of_the_spec_and_any_is_taken() -> None:
    tables, tensor = tables_of_maps(), maps(2, seed=9)
    last = tensor.contiguous(memory_format=torch.channels_last)
    assert sent(last, 5) == sent(tensor, 5)
    spec = spec_of(tensor, order=(0, 2, 3, 1))
    arrived = decode(sent(tensor, 5), tables, spec).tensor
    assert arrived.stride() == last.stride()
    assert torch.equal(arrived, decode(sent(tensor, 5), tables, spec_of(tensor)).tensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_cannot_be_quantised_is_not_coded(value: float) -> None:
    tensor = maps(1, seed=10)
    tensor[0, 3, 5, 5] = value
    assert encode(tensor, tables_of_maps(), 5) is None


def test_what_would_not_be_smaller_is_not_coded() -> None:
    noise = 1e4 * torch.randn(1, 8, 14, 14, generator=torch.Generator().manual_seed(0))
    assert encode(noise, tables_of_maps(), 0) is None


def test_what_is_much_larger_than_expected_costs_bytes_but_is_right() -> None:
    louder = 30 * maps(1, seed=11)
    coded = sent(louder, 12)
    assert len(coded[0]) > 2 * len(sent(maps(1, seed=11), 12)[0])
    assert error(decode(coded, tables_of_maps(), spec_of(louder)).tensor, louder) < 0.005


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_other_numbers_keep_their_dtype(dtype: torch.dtype) -> None:
    values = (maps(16, 3, seed=1) * 20 + 128).clamp(0, 255)
    samples = values.to(dtype)
    tables = fit(samples)
    coded = encode(samples[:1], tables, 4)
    assert coded is not None
    arrived = decode(coded, tables, spec_of(samples[:1])).tensor
    assert arrived.dtype == dtype
    assert error(arrived.float(), samples[:1].float()) < 0.1
    # A step that is far too coarse stays within what a byte holds.
    coarse = encode(samples[:1], tables, STEPS - 1)
    assert coarse is not None
    decode(coarse, tables, spec_of(samples[:1]))


@pytest.mark.parametrize("segments", SEGMENTS)
def test_a_payload_is_never_as_large_as_the_elements(segments: int) -> None:
    few = fit(maps(24, 2, 2, 2))
    for scale in (0.1, 1.0, 3.0, 10.0, 100.0):
        tensor = scale * maps(1, 2, 2, 2, seed=14)
        for step in range(STEPS):
            coded = encode(tensor, few, step, segments)
            assert coded is None or len(pack(coded)) < 4 * tensor.numel()


def test_only_tensors_of_the_tables_are_coded() -> None:
    tables, tensor = tables_of_maps(), maps(1)
    assert is_coded_by(tables, spec_of(maps(5)))
    for other in (tensor[:, :7], tensor.half(), tensor.long(), tensor[0], tensor[:0]):
        assert not is_coded_by(tables, spec_of(other))
        with pytest.raises(CodecError):
            encode(other, tables, 3)
        with pytest.raises(CodecError):
            decode(sent(tensor, 3), tables, spec_of(other))
    with pytest.raises(CodecError, match="complex64"):
        encode(tensor.to(torch.complex64), tables, 3)
    enormous = TensorSpec("t", DType.FLOAT32, (2**20, 8, 14, 14), (0, 1, 2, 3))
    with pytest.raises(CodecError, match="at most"):
        decode(sent(tensor, 3), tables, enormous)
    for step, segments in ((-1, 1), (STEPS, 1), (0, 3)):
        with pytest.raises(ValueError, match=r"no (step -1|step 28|3 segments);"):
            encode(tensor, tables, step, segments)


def test_segments_that_do_not_belong_together_are_refused() -> None:
    tables, tensor = tables_of_maps(), maps(1)
    spec = spec_of(tensor)
    four, others = sent(tensor, 6, 4), sent(tensor, 7, 4)
    for wrong in (
        [],
        four[1:],
        [four[0], others[1]],
        [four[0], four[0]],
        [*four, four[3]],
        [four[0], sent(tensor, 6, 2)[1]],
        [b""],
        [four[0][:-1]],
        [four[0] + bytes(4)],
        [four[0] + four[0][4:]],
        [b"\x02" + four[0][1:]],
        [bytes([1, STEPS, 0, 4])],
        [bytes([1, 0, 0, 3])],
    ):
        with pytest.raises(CodecError):
            decode(wrong, tables, spec)


@given(st.binary(max_size=600).map(lambda data: data[: len(data) // 4 * 4]), st.integers(0, STEPS - 1))
@settings(max_examples=100, deadline=None)
def test_any_words_are_refused_or_decode_to_the_spec(words: bytes, step: int) -> None:
    spec = spec_of(maps(1))
    try:
        decoded = decode([bytes([1, step, 0, 4]) + words], tables_of_maps(), spec)
    except CodecError:
        return
    assert tuple(decoded.tensor.shape) == spec.shape
    assert torch.isfinite(decoded.tensor).all()


@pytest.mark.parametrize("segments", SEGMENTS)
def test_segments_travel_in_one_payload(segments: int) -> None:
    coded = sent(maps(1), 6, segments)
    payload = pack(coded)
    assert len(payload) == sum(map(len, coded)) + 1 + 4 * (segments - 1)
    assert [bytes(segment) for segment in unpack(payload)] == coded
    assert [bytes(segment) for segment in unpack(memoryview(bytearray(payload)))] == coded


@given(st.binary(max_size=60))
def test_any_payload_is_refused_or_taken_apart(data: bytes) -> None:
    try:
        parts = unpack(data)
    except CodecError:
        return
    assert pack(parts) == data


def test_a_size_beyond_the_payload_is_refused() -> None:
    with pytest.raises(CodecError, match="end at"):
        unpack(bytes([2]) + struct.pack("<I", 9) + bytes(8))


def test_what_is_zero_takes_little_and_at_coarse_steps_next_to_nothing() -> None:
    tables = tables_of_maps()
    flat = torch.from_numpy(np.array(tables.mean)).view(1, -1, 1, 1).expand(1, 8, 14, 14)
    assert len(sent(flat, 12)[0]) < 0.6 * len(sent(maps(1), 12)[0])
    assert len(sent(flat, STEPS - 1)[0]) < 40
    arrived = decode(sent(flat, 12), tables, spec_of(maps(1))).tensor
    assert torch.allclose(arrived, flat, atol=1e-5)


def test_the_coder_takes_little_more_than_the_probabilities_do() -> None:
    tables, batch = tables_of_maps(), maps(40, seed=12)
    for step in (0, 8, 16):
        took = 8 * len(sent(batch, step)[0])
        ideal = ideal_bits(batch, tables, step)
        # How many are not zero is told apart, and may say more than the probability of each.
        assert 0.98 * ideal < took < 1.02 * ideal + 256
