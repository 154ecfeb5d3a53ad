import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import Codec, Form, Stage, decode, encode, max_payload_bytes, raw_bytes
from shared.errors import CodecError
from shared.tensor import DType, TensorSpec, order_from_strides
from shared.wire import WireLimits, decode_message, encode_message
from shared.wire.messages import Infer

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
OTHERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]
QUANTISERS = [Codec.UINT8, Codec.INT4]


def spec_of(tensor):
    return TensorSpec(
        "t", DType.from_label(str(tensor.dtype)), tuple(tensor.shape), order_from_strides(tensor.stride())
    )


def visible_order(tensor):
    """The memory order of the dimensions in which one moves at all."""
    if not tensor.numel():
        return []
    return [dim for dim in order_from_strides(tensor.stride()) if tensor.shape[dim] > 1]


def round_trip(tensor, codec):
    header, payload = encode(tensor, codec, 0)
    assert header.payload_bytes == memoryview(payload).nbytes <= max_payload_bytes(spec_of(tensor), codec)
    return decode(header, bytes(payload), spec_of(tensor))


def same(left, right):
    """Equal bit for bit, NaN payloads and signed zeros included."""
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.tolist().__repr__() == (right.tolist().__repr__())
    )


def seeded(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def step_of(tensor, codec, dims):
    """The step of each group, by the definition in docs/protocol.md."""
    high = tensor.double().amax(dims, keepdim=True).clamp(min=0)
    low = tensor.double().amin(dims, keepdim=True).clamp(max=0)
    return (high - low) / (255 if codec.form is Form.UINT8 else 15)


@st.composite
def tensors(draw, dtypes=(*FLOATS, *OTHERS)):
    """Any dtype, rank 0 to 6, empty ones, any memory order, slices and expanded dimensions."""
    shape = draw(st.lists(st.integers(0, 6), max_size=6))
    dtype = draw(st.sampled_from(dtypes))
    base = seeded(*shape, seed=draw(st.integers(0, 99))) * draw(st.sampled_from([1.0, 1e-3, 500.0]))
    tensor = base.to(dtype) if dtype is not torch.bool else base > 0
    tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    if tensor.dim() and draw(st.booleans()):
        tensor = tensor[..., ::2]
    if tensor.dim() and tensor.shape[0] == 1 and draw(st.booleans()):
        tensor = tensor.expand(3, *tensor.shape[1:])
    return tensor


class TestExact:
    @settings(max_examples=200)
    @given(tensors(), st.sampled_from([Codec.FLOAT32, Codec.FLOAT32_LZ4, Codec.FLOAT32_ZSTD]))
    def test_float32_is_lossless_for_every_dtype_and_order(self, tensor, codec):
        decoded = round_trip(tensor, codec)
        assert decoded.dtype == tensor.dtype
        assert torch.equal(decoded, tensor)
        assert visible_order(decoded) == visible_order(tensor)

    @given(tensors(OTHERS), st.sampled_from(Codec))
    def test_integers_and_booleans_are_lossless_under_every_codec(self, tensor, codec):
        decoded = round_trip(tensor, codec)
        assert decoded.dtype == tensor.dtype
        assert torch.equal(decoded, tensor)

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_specials_survive(self, dtype):
        tensor = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-7], dtype=dtype).repeat(1, 8)
        for codec in (Codec.FLOAT32, Codec.FLOAT32_ZSTD):
            assert same(round_trip(tensor, codec), tensor)

    @pytest.mark.parametrize(
        "tensor",
        [
            seeded(2, 3, 4, 5),
            seeded(2, 3, 4, 5).to(memory_format=torch.channels_last),
            seeded(1, 3, 1, 1).to(memory_format=torch.channels_last),
            seeded(1, 3, 1, 1),
            seeded(4, 6).t(),
            seeded(2, 3, 4).permute(2, 0, 1),
            torch.zeros(0, 3, 2),
            torch.tensor(1.5),
        ],
    )
    @pytest.mark.parametrize("codec", [Codec.FLOAT32, Codec.FLOAT16, Codec.UINT8, Codec.INT4_ZSTD])
    def test_a_dense_tensor_keeps_its_strides(self, tensor, codec):
        assert round_trip(tensor, codec).stride() == tensor.stride()

    def test_slices_are_compacted_in_their_order(self):
        tensor = seeded(4, 6, 8).permute(2, 0, 1)[1::2, :, 1:3]
        decoded = round_trip(tensor, Codec.FLOAT32)
        assert tensor.shape == (4, 4, 2)
        assert decoded.stride() == (1, 8, 4)

    def test_the_tensor_owns_its_memory(self):
        tensor = seeded(4, 50)
        header, payload = encode(tensor, Codec.FLOAT32, 0)
        buffer = bytearray(payload)
        decoded = decode(header, buffer, spec_of(tensor))
        buffer[:] = bytes(len(buffer))
        assert torch.equal(decoded, tensor)
        decoded.zero_()
        assert decoded.data_ptr() % 64 == 0

    def test_a_shared_tensor_is_the_payload_itself(self):
        for tensor in (seeded(2, 3, 8, 8), seeded(4, 6).t(), torch.arange(12).view(3, 4)):
            header, payload = encode(tensor, Codec.FLOAT32, 0)
            buffer = bytearray(payload)
            decoded = decode(header, buffer, spec_of(tensor), share=True)
            assert decoded.data_ptr() == np.frombuffer(buffer, "u1").ctypes.data
            assert torch.equal(decoded, tensor)
            assert decoded.stride() == tensor.stride()
            del payload, buffer
            assert torch.equal(decoded, tensor), "the tensor keeps the payload"

    def test_a_shared_tensor_is_a_copy_where_torch_could_not_read_the_payload_in_its_place(self):
        tensor = seeded(4, 50)
        header, payload = encode(tensor, Codec.FLOAT32, 0)
        odd = memoryview(bytearray(1) + bytearray(payload))[1:]
        decoded = decode(header, odd, spec_of(tensor), share=True)
        assert decoded.data_ptr() % 64 == 0
        assert torch.equal(decoded, tensor)

    @pytest.mark.parametrize("codec", list(Codec))
    def test_sharing_changes_no_value(self, codec):
        for tensor in (seeded(2, 4, 9, 9).relu(), seeded(1, 3) > 0, torch.zeros(0, 3), seeded(2, 8).half()):
            header, payload = encode(tensor, codec, 0)
            owned = decode(header, bytes(payload), spec_of(tensor))
            shared = decode(header, bytearray(payload), spec_of(tensor), share=True)
            assert torch.equal(owned, shared)
            assert owned.stride() == shared.stride()

    def test_a_dense_tensor_is_not_copied_to_be_sent(self):
        tensor = seeded(2, 3, 8, 8).to(memory_format=torch.channels_last)
        _, payload = encode(tensor, Codec.FLOAT32, 0)
        assert np.frombuffer(payload, "u1").ctypes.data == tensor.data_ptr()

    def test_parameters_and_inference_tensors(self):
        parameter = torch.nn.Parameter(seeded(3, 40))
        assert torch.equal(round_trip(parameter, Codec.FLOAT32), parameter.data)
        with torch.inference_mode():
            tensor = seeded(3, 40) * 2
            assert torch.equal(round_trip(tensor, Codec.FLOAT32), tensor)
            assert (round_trip(tensor, Codec.UINT8) - tensor).abs().max() < 0.05

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
    def test_other_dtypes_cannot_travel(self, dtype):
        with pytest.raises(CodecError, match=r"cannot travel; convert it to one of float32, .*bool"):
            encode(torch.zeros(3).to(dtype), Codec.FLOAT32, 0)


class TestHalf:
    def test_values_are_rounded_to_float16(self):
        tensor = seeded(2, 100)
        assert torch.equal(round_trip(tensor, Codec.FLOAT16), tensor.half().float())
        assert torch.equal(round_trip(tensor.double(), Codec.FLOAT16), tensor.half().double())

    def test_finite_values_saturate_and_specials_pass(self):
        tensor = torch.tensor([65504.0, 65519.0, 65520.0, -1e30, math.inf, -math.inf, 1.0])
        assert round_trip(tensor, Codec.FLOAT16).tolist() == [
            65504.0,
            65504.0,
            65504.0,
            -65504.0,
            math.inf,
            -math.inf,
            1.0,
        ]
        with_nan = torch.tensor([1e6, math.nan])
        assert repr(round_trip(with_nan, Codec.FLOAT16).tolist()) == "[65504.0, nan]"

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_two_byte_floats_are_left_alone(self, dtype):
        tensor = (seeded(2, 100) * 1e4).to(dtype)
        assert torch.equal(round_trip(tensor, Codec.FLOAT16), tensor)


@pytest.mark.parametrize("codec", QUANTISERS)
class TestQuantised:
    @pytest.mark.parametrize(
        ("tensor", "dims"),
        [
            (seeded(3, 8, 9, 7), (2, 3)),
            (seeded(3, 8, 9, 7).to(memory_format=torch.channels_last), (2, 3)),
            # More rows than are reduced at once, in channels that fill no vector: folded, with a rest.
            (seeded(2, 24, 11, 13).to(memory_format=torch.channels_last), (2, 3)),
            (seeded(1, 3, 64, 2).to(memory_format=torch.channels_last), (2, 3)),
            (seeded(2, 5, 3, 4, 6).permute(0, 1, 4, 2, 3), (2, 3, 4)),
            (seeded(9, 7, 3, 8).permute(2, 3, 0, 1), (2, 3)),
            (seeded(9, 3, 7, 8).permute(1, 3, 0, 2), (2, 3)),
            (seeded(2, 197, 24), (1,)),
            (seeded(197, 2, 24).permute(1, 0, 2), (1,)),
            (seeded(4, 100), (1,)),
            (seeded(100, 4).t(), (1,)),
            (seeded(2, 16, 1, 1), (1, 2, 3)),
        ],
    )
    def test_within_half_a_step_of_the_group(self, codec, tensor, dims):
        error = (round_trip(tensor, codec).double() - tensor.double()).abs()
        step = step_of(tensor, codec, dims)
        assert bool((error <= step * 0.5001).all())
        # A quantiser of coarser groups would be much better than this only by accident.
        assert float((error / step).mean()) > 0.1

    @given(tensors(FLOATS))
    @settings(max_examples=150)
    def test_any_tensor_of_any_order(self, codec, tensor):
        decoded = round_trip(tensor, codec)
        assert decoded.shape == tensor.shape
        assert decoded.dtype == tensor.dtype
        assert visible_order(decoded) == visible_order(tensor)
        if tensor.numel():
            reach = float(tensor.double().amax().clamp(min=0) - tensor.double().amin().clamp(max=0))
            levels = 255 if codec is Codec.UINT8 else 15
            rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(tensor.dtype, 2**-20)
            worst = float((decoded.double() - tensor.double()).abs().max())
            assert worst <= reach * (0.5 / levels + rounding)

    def test_zero_is_exact(self, codec):
        tensor = seeded(4, 8, 9, 9)
        tensor[:, ::2].relu_()
        tensor[tensor.abs() < 0.5] = 0.0
        assert bool((round_trip(tensor, codec)[tensor == 0] == 0).all())

    def test_after_a_relu_the_zero_point_is_zero(self, codec):
        tensor = seeded(1, 4, 8, 8).relu()
        _, payload = encode(tensor, codec, 0)
        assert bytes(payload)[16:20] == bytes(4)

    @pytest.mark.parametrize("constant", [0.0, 1.0, -3.7, 1e-30, 1e30])
    def test_constant_channels(self, codec, constant):
        tensor = torch.full((1, 2, 5, 5), constant)
        decoded = round_trip(tensor, codec)
        assert bool(((decoded - tensor).abs() <= abs(constant) * 2e-7).all())
        assert (round_trip(torch.zeros(2, 30), codec) == 0).all()

    def test_a_sample_does_not_depend_on_its_batch(self, codec):
        one, two = seeded(1, 6, 5, 5), seeded(1, 6, 5, 5, seed=1) * 100
        both = round_trip(torch.cat([one, two]), codec)
        assert torch.equal(both[:1], round_trip(one, codec))
        assert torch.equal(both[1:], round_trip(two, codec))

    def test_memory_order_changes_no_value(self, codec):
        tensor = seeded(2, 24, 11, 13)
        other = tensor.to(memory_format=torch.channels_last)
        assert torch.equal(round_trip(tensor, codec), round_trip(other, codec))

    @pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("shape", [(1, 24, 11, 13), (2, 40)])
    @pytest.mark.parametrize("where", [0, -1, 39])
    def test_what_is_not_finite_is_sent_exactly(self, codec, special, shape, where):
        tensor = seeded(*shape)
        tensor.view(-1)[where] = special
        if len(shape) == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        header, payload = encode(tensor, codec, 0)
        assert header.codec == Codec.FLOAT32
        assert same(decode(header, payload, spec_of(tensor)), tensor)
        squeezed, _ = encode(torch.full((1, 1000), special), Codec.of(codec.form, Codec.FLOAT32_LZ4.stage), 0)
        assert squeezed.codec == Codec.FLOAT32_LZ4

    def test_the_mask_of_an_attention_saturates_and_keeps_its_zeros(self, codec):
        lowest = torch.finfo(torch.float32).min
        tensor = torch.where(seeded(1, 1, 20, 20) > 0, lowest, 0.0)
        decoded = round_trip(tensor, codec)
        assert bool((decoded[tensor == 0] == 0).all())
        assert bool((decoded[tensor != 0] < -8e37).all())
        assert bool(decoded.isfinite().all())

    def test_the_widest_range_stays_finite(self, codec):
        highest = torch.finfo(torch.float32).max
        decoded = round_trip(torch.linspace(-1, 1, 64).mul(highest).view(1, 64), codec)
        assert bool(decoded.isfinite().all())
        halves = torch.linspace(-65504, 65504, 64).half().view(1, 64)
        assert bool(round_trip(halves, codec).isfinite().all())

    def test_a_range_too_small_for_a_step_becomes_zero(self, codec):
        tensor = torch.full((1, 20), 1e-39)
        assert bool((round_trip(tensor, codec) == 0).all())

    def test_a_float64_beyond_float32_is_sent_exactly(self, codec):
        tensor = torch.full((1, 20), 1e300, dtype=torch.float64)
        assert torch.equal(round_trip(tensor, codec), tensor)


class TestStages:
    @pytest.mark.parametrize("codec", [codec for codec in Codec if codec.stage in (Stage.LZ4, Stage.ZSTD)])
    def test_the_stage_is_used_where_it_pays_and_changes_nothing(self, codec):
        tensor = seeded(1, 16, 20, 20).relu().round()
        header, payload = encode(tensor, codec, 0)
        assert header.codec == codec
        assert header.payload_bytes < raw_bytes(spec_of(tensor), codec)
        plain_header, plain = encode(tensor, codec.plain, 0)
        spec = spec_of(tensor)
        assert torch.equal(decode(header, payload, spec), decode(plain_header, plain, spec))

    def test_the_stage_is_dropped_where_it_does_not_pay(self):
        tensor = seeded(1, 4, 8, 8)
        header, payload = encode(tensor, Codec.UINT8_LZ4, 0)
        assert header.codec == Codec.UINT8
        assert len(payload) == raw_bytes(spec_of(tensor), Codec.UINT8)


def test_tensors_cross_the_wire_in_one_message():
    live = {
        4: seeded(2, 3, 8, 8).to(memory_format=torch.channels_last),
        2: torch.arange(6).view(2, 3),
        9: torch.zeros(0, 3),
    }
    sent = [encode(tensor, Codec.UINT8_ZSTD, slot) for slot, tensor in live.items()]
    header = Infer(batch=2, tensors=[tensor for tensor, _ in sent], reply_codec=Codec.FLOAT32)
    frames = encode_message(header, [payload for _, payload in sent], codec=Codec.UINT8_ZSTD)
    message = decode_message([bytes(frame) for frame in frames], WireLimits())
    for tensor_header, payload in zip(message.header.tensors, message.payloads, strict=True):
        tensor = live.pop(tensor_header.slot)
        decoded = decode(tensor_header, payload, spec_of(tensor))
        assert torch.equal(decoded, round_trip(tensor, Codec.UINT8))
        assert decoded.stride() == tensor.stride()
    assert not live


class TestRefusals:
    """Each case is a good payload with one thing wrong."""

    TENSOR = seeded(2, 3, 4, 4).relu().round()

    def refuse(self, reason, sent_with=Codec.UINT8, payload=None, spec=None, **changed):
        header, data = encode(self.TENSOR, sent_with, 7)
        decode(header, data, spec_of(self.TENSOR))
        payload = bytes(data) if payload is None else payload(bytearray(data))
        header = msgspec.structs.replace(header, **({"payload_bytes": len(payload)} | changed))
        with pytest.raises(CodecError, match=reason):
            decode(header, payload, spec or spec_of(self.TENSOR))

    @pytest.mark.parametrize("codec", [0, 1, 0x13, 0x50, 0xFF])
    def test_an_unknown_codec(self, codec):
        self.refuse(f"slot 7: codec {codec:#04x} is not known here", codec=codec)

    @pytest.mark.parametrize("codec", [codec for codec in Codec if codec is not Codec.UINT8])
    def test_another_codec_than_the_payload_was_made_with(self, codec):
        self.refuse("payload|lz4|zstd|no tables", codec=codec)

    def test_another_dtype_or_shape_than_the_spec(self):
        spec = spec_of(self.TENSOR)
        self.refuse("dtype 4", dtype=DType.FLOAT64)
        self.refuse("is announced as", shape=[2, 3, 16], order=[0, 1, 2])
        self.refuse("the model's t", spec=TensorSpec("t", DType.FLOAT16, spec.shape, spec.order))
        self.refuse("the model's t", spec=TensorSpec("t", spec.dtype, (2, 3, 4, 5), spec.order))

    @pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 4], []])
    def test_an_order_that_permutes_nothing(self, order):
        self.refuse("no permutation of 4", order=order)

    @pytest.mark.parametrize("codec", Codec)
    def test_a_payload_that_is_cut_or_grown(self, codec):
        self.refuse("payload|lz4|zstd", sent_with=codec, payload=lambda data: data[:-1])
        self.refuse("payload|lz4|zstd", sent_with=codec, payload=lambda data: data + b"\0")
        self.refuse("payload|lz4|zstd", sent_with=codec, payload=lambda data: b"")
        self.refuse("not of the announced size", sent_with=codec, payload_bytes=5)

    @pytest.mark.parametrize("codec", QUANTISERS)
    @pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1e-30, 3e38])
    def test_scales_that_are_no_steps(self, codec, scale):
        def spoil(data):
            data[8:12] = np.float32(scale).tobytes()
            return data

        self.refuse("a scale that is negative or not finite", sent_with=codec, payload=spoil)

    def test_a_zero_point_beyond_four_bits(self):
        def spoil(data):
            data[4 * 6 + 2] = 16
            return data

        self.refuse("a zero point above 15", sent_with=Codec.INT4, payload=spoil)

    def test_the_unused_half_of_the_last_byte(self):
        tensor = seeded(1, 9)
        header, payload = encode(tensor, Codec.INT4, 0)
        spoilt = bytearray(payload)
        assert spoilt[-1] < 16
        spoilt[-1] |= 0x10
        with pytest.raises(CodecError, match="unused half"):
            decode(header, spoilt, spec_of(tensor))

    def test_any_byte_of_a_bool_payload_is_a_bool(self):
        tensor = torch.zeros(4, dtype=torch.bool)
        header, _ = encode(tensor, Codec.FLOAT32, 0)
        decoded = decode(header, b"\x00\x01\x02\xff", spec_of(tensor))
        assert decoded.view(torch.uint8).tolist() == [0, 1, 1, 1]
