import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.codec import TRANSFORMS, Codec, Form, Stage, max_payload_bytes, raw_bytes
from shared.codec.layout import layout_of
from shared.tensor import DType, TensorSpec


def spec(dtype, shape):
    return TensorSpec("t", dtype, shape, tuple(range(len(shape))))


def test_numbers_and_labels_never_change():
    assert {codec.label: int(codec) for codec in Codec} == {
        "float32": 0x10,
        "float32+lz4": 0x11,
        "float32+zstd": 0x12,
        "float16": 0x20,
        "float16+lz4": 0x21,
        "float16+zstd": 0x22,
        "uint8": 0x30,
        "uint8+lz4": 0x31,
        "uint8+zstd": 0x32,
        "int4": 0x40,
        "int4+lz4": 0x41,
        "int4+zstd": 0x42,
        "transform-1": 0x53,
        "transform-2": 0x63,
        "transform-3": 0x73,
        "transform-4": 0x83,
        "transform-5": 0x93,
        "transform-6": 0xA3,
        "transform-7": 0xB3,
        "transform-8": 0xC3,
    }


@pytest.mark.parametrize("codec", Codec)
def test_a_codec_is_a_form_times_a_stage(codec):
    assert Codec.of(codec.form, codec.stage) is codec
    assert Codec.from_label(codec.label) is codec
    assert codec.plain.stage is Stage.PLAIN
    assert codec.plain.form is (Form.EXACT if codec in TRANSFORMS else codec.form)
    assert codec.lossless.form is Form.EXACT
    assert Codec.of_form(codec.form).form is codec.form


def test_the_transforms_are_a_ladder_of_steps_that_never_change():
    assert [codec.form.step for codec in TRANSFORMS] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert {codec for codec in Codec if codec.form.is_transform} == set(TRANSFORMS)
    assert all(codec.lossless is Codec.FLOAT32_ZSTD for codec in TRANSFORMS)


def test_an_unknown_label_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no codec 'int8'; there are float32, .*int4\+zstd"):
        Codec.from_label("int8")


@pytest.mark.parametrize(
    ("dtype", "shape", "codec", "nbytes"),
    [
        (DType.FLOAT32, (2, 3, 4, 5), Codec.FLOAT32, 480),
        (DType.FLOAT64, (2, 3), Codec.FLOAT32, 48),
        (DType.FLOAT32, (2, 3, 4, 5), Codec.FLOAT16_ZSTD, 240),
        (DType.FLOAT64, (2, 3), Codec.FLOAT16, 12),
        (DType.BFLOAT16, (2, 3), Codec.FLOAT16, 12),
        (DType.FLOAT32, (2, 3, 4, 5), Codec.UINT8, 2 * 3 * 5 + 120),
        (DType.FLOAT32, (2, 9, 5), Codec.UINT8, 2 * 5 * 5 + 90),
        (DType.FLOAT32, (2, 9), Codec.UINT8, 2 * 5 + 18),
        (DType.FLOAT32, (1, 9), Codec.INT4, 5 + 5),
        (DType.FLOAT32, (1, 4, 3, 3), Codec.INT4_LZ4, 4 * 5 + 18),
        # Seven elements per channel are too few, the 21 of the sample are not.
        (DType.FLOAT32, (2, 3, 7, 1), Codec.UINT8, 2 * 5 + 42),
        # As many elements in all, but no more than seven of one sample.
        (DType.FLOAT32, (6, 7), Codec.UINT8, 6 * 7 * 4),
        (DType.FLOAT32, (), Codec.INT4, 4),
        (DType.FLOAT32, (0, 3, 8, 8), Codec.UINT8, 0),
        (DType.INT64, (2, 30), Codec.INT4, 480),
        (DType.BOOL, (2, 30), Codec.FLOAT16, 60),
    ],
)
def test_sizes(dtype, shape, codec, nbytes):
    assert raw_bytes(spec(dtype, shape), codec) == nbytes


@given(
    st.sampled_from(DType),
    st.lists(st.integers(0, 20), max_size=6).map(tuple),
    st.sampled_from(Codec),
    st.integers(1, 5),
)
def test_sizes_are_bounded_and_do_not_depend_on_the_batch(dtype, shape, codec, batch):
    tensor = spec(dtype, shape)
    assert raw_bytes(tensor, codec) <= max_payload_bytes(tensor, codec) <= tensor.nbytes
    if shape and shape[0] == 1:
        one = layout_of(dtype, shape, codec)
        many = layout_of(dtype, (batch, *shape[1:]), codec)
        assert (many.form, many.group_dims, many.groups) == (one.form, one.group_dims, one.groups * batch)


def test_quantisers_promise_no_more_than_the_exact_size():
    tensor = spec(DType.FLOAT32, (1, 64))
    assert max_payload_bytes(tensor, Codec.UINT8) == 256
    assert max_payload_bytes(tensor, Codec.FLOAT16_ZSTD) == 128
    assert layout_of(DType.FLOAT32, (1, 64), Codec.UINT8).form is Form.UINT8


def test_sizes_cost_no_torch():
    program = (
        "import sys; from shared.codec import Codec, raw_bytes; from shared.wire import decode_message;"
        "assert not {'torch', 'numpy', 'lz4', 'zstandard', 'zmq', 'asyncio'} & set(sys.modules);"
        "from shared.codec.raw import pack_array; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
