"""A memory order says exactly what dense strides say."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shared.tensor import DType, SymbolicSpec, TensorSpec, order_from_strides, strides_from_order

SHAPES = st.lists(st.integers(1, 5), max_size=5).map(tuple)


@given(SHAPES, st.randoms(use_true_random=False))
def test_order_and_strides_invert_each_other(shape: tuple[int, ...], random: object) -> None:
    axes = list(range(len(shape)))
    random.shuffle(axes)  # type: ignore[attr-defined]
    strides = strides_from_order(shape, tuple(axes))
    again = strides_from_order(shape, order_from_strides(strides))
    relevant = [dim for dim in range(len(shape)) if shape[dim] > 1]
    assert [strides[dim] for dim in relevant] == [again[dim] for dim in relevant]


@given(SHAPES)
def test_strides_agree_with_numpy(shape: tuple[int, ...]) -> None:
    array = np.empty(shape, np.float32)
    strides = strides_from_order(shape, tuple(range(len(shape))))
    assert [s * 4 for s, n in zip(strides, shape, strict=True) if n > 1] == [
        s for s, n in zip(array.strides, shape, strict=True) if n > 1
    ]


def test_channels_last_of_a_single_pixel_keeps_its_order() -> None:
    assert order_from_strides((8, 1, 1, 1)) == (0, 1, 2, 3)
    assert order_from_strides((8, 1, 8, 8)) == (0, 2, 3, 1)
    assert strides_from_order((1, 8, 1, 1), (0, 2, 3, 1)) == (8, 1, 8, 8)


def test_sizes() -> None:
    spec = SymbolicSpec("x", DType.FLOAT16, ((1, 0), (0, 3), (2, 1)), (0, 1, 2)).at(batch=4)
    assert spec == TensorSpec("x", DType.FLOAT16, (4, 3, 9), (0, 1, 2))
    assert (spec.numel, spec.nbytes) == (108, 216)


def test_dtype_table_matches_numpy() -> None:
    for dtype in DType:
        if dtype is not DType.BFLOAT16:
            assert np.dtype(dtype.label).itemsize == dtype.itemsize
        assert DType.from_label("torch." + dtype.label) is dtype
    assert {d for d in DType if d.is_float} == {1, 2, 3, 4}
