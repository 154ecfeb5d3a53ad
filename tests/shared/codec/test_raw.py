import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.codec import Codec, decode, encode
from shared.codec.raw import pack_array, unpack_array
from shared.errors import CodecError, InputMismatchError
from shared.tensor import DType, TensorSpec

DTYPES = ["f4", "f2", "f8", "i1", "u1", "i2", "i4", "i8", "?"]


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
    ),
    st.randoms(use_true_random=False),
)
def test_arrays_come_back_with_their_memory_order(array, random):
    axes = list(range(array.ndim))
    random.shuffle(axes)
    array = array.transpose(axes)
    header, data = pack_array(array, 5)
    assert header.slot == 5
    assert header.payload_bytes == data.nbytes == array.nbytes
    copy = unpack_array(header, bytes(data))
    np.testing.assert_array_equal(copy, array)
    assert copy.dtype == array.dtype
    assert copy.flags.writeable
    if array.size:
        long = [dim for dim in range(array.ndim) if array.shape[dim] > 1]
        assert [copy.strides[dim] for dim in long] == [array.strides[dim] for dim in long]


def test_a_dense_array_is_not_copied_to_be_sent():
    array = np.arange(12.0, dtype="f4").reshape(3, 4)
    for dense in (array, array.T, np.asfortranarray(array)):
        _, data = pack_array(dense, 0)
        assert np.shares_memory(dense, np.frombuffer(data, "u1"))


def test_slices_broadcasts_and_foreign_byte_orders_are_compacted():
    array = np.arange(24.0).reshape(4, 6)
    for view in (array[::2, 1:], array[:, ::-1], np.broadcast_to(array[0], (3, 6)), array.astype(">f4")):
        header, data = pack_array(view, 0)
        assert data.nbytes == view.size * view.itemsize
        np.testing.assert_array_equal(unpack_array(header, data), view)


@pytest.mark.parametrize("dtype", ["O", "U3", "S3", "c8", "u4", "m8[s]", [("a", "f4")]])
def test_other_dtypes_are_refused_with_those_that_travel(dtype):
    with pytest.raises(InputMismatchError, match="convert it to one of float32, float16"):
        pack_array(np.zeros(3, dtype), 0)


@pytest.mark.parametrize("array", [np.arange(6, dtype="i2").reshape(2, 3), np.float64([[1.5], [2.5]])])
def test_torch_and_numpy_read_each_other(array):
    header, data = pack_array(array, 0)
    spec = TensorSpec("t", DType(header.dtype), array.shape, tuple(header.order))
    tensor = decode(header, data, spec)
    np.testing.assert_array_equal(tensor.numpy(), array)
    header, payload = encode(tensor, Codec.FLOAT32, 0)
    np.testing.assert_array_equal(unpack_array(header, payload), array)


def test_bfloat16_arrives_as_the_float32_of_the_same_value():
    tensor = torch.tensor([1.0, -2.5, 3.14159, float("inf"), 1e-40]).to(torch.bfloat16)
    header, payload = encode(tensor, Codec.FLOAT32, 0)
    array = unpack_array(header, payload)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, tensor.float().numpy())


def test_any_byte_of_a_bool_payload_is_a_bool():
    header, _ = pack_array(np.zeros(4, bool), 0)
    array = unpack_array(header, b"\x00\x01\x02\xff")
    assert array.tolist() == [False, True, True, True]
    assert array.view("u1").tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    "changed",
    [
        {"codec": Codec.UINT8},
        {"codec": 0},
        {"dtype": 0},
        {"dtype": 99},
        {"shape": [2, 4]},
        {"shape": [2**31 - 1] * 8, "order": list(range(8))},
        {"order": [0, 0]},
        {"order": [0]},
        {"shape": [6]},
    ],
)
def test_contradictions_are_refused(changed):
    header, data = pack_array(np.zeros((2, 3), "f4"), 0)
    with pytest.raises(CodecError):
        unpack_array(msgspec.structs.replace(header, **changed), data)


def test_a_payload_of_another_size_is_refused():
    header, data = pack_array(np.zeros((2, 3), "f4"), 0)
    for payload in (data[:-1], bytes(data) + b"x", b""):
        with pytest.raises(CodecError, match="bytes for 6 elements of float32"):
            unpack_array(header, payload)
