from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.local_wire import pack_tree, unpack_tree
from shared.errors import InputMismatchError, ProtocolError
from shared.wire import Message, WireLimits, decode_message, encode_message
from shared.wire.messages import LocalInfer


def across(value: Any) -> Any:
    """Through real wire bytes."""
    tree, headers, payloads = pack_tree(value)
    frames = encode_message(LocalInfer(model="m", tensors=headers, tree=tree), payloads)
    return unpack_tree(decode_message([bytes(frame) for frame in frames], WireLimits()))


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, tuple | list):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


arrays = st.sampled_from(
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(12, dtype=np.int64).reshape(3, 4).T,
        np.zeros((0, 2), dtype=np.uint8),
        np.array([True, False]),
        np.array(2.5),
    ]
)
leaves = arrays | st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-1, 1) | st.text(max_size=3)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(trees)
def test_a_tree_arrives_as_it_was(value: Any) -> None:
    assert same(across(value), value)


def test_torch_tensors_arrive_as_arrays_without_their_gradients() -> None:
    (sent,) = across((torch.ones(2, 3, requires_grad=True),))
    assert isinstance(sent, np.ndarray)
    assert sent.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_what_cannot_cross_is_refused_by_name() -> None:
    with pytest.raises(InputMismatchError, match="set"):
        pack_tree({"x": {1, 2}})
    with pytest.raises(InputMismatchError, match="strings"):
        pack_tree({1: np.zeros(1)})
    with pytest.raises(InputMismatchError, match="complex"):
        pack_tree(np.zeros(1, dtype=np.complex64))


@pytest.mark.parametrize(
    "tree", [1, -1, True, 1.5, "x", None, [0], {}, {"leaf": 0}, {"tuple": 0}, {"dict": []}, {"constant": []}]
)
def test_a_tree_that_is_none_of_ours_is_a_protocol_error(tree: Any) -> None:
    _, headers, payloads = pack_tree(np.zeros(2))
    frames = encode_message(LocalInfer(model="m", tensors=headers, tree=tree), payloads)
    message: Message = decode_message(frames, WireLimits())
    with pytest.raises(ProtocolError):
        unpack_tree(message)
