"""Nested values flatten to leaves and come back; what differs is named."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputMismatchError
from shared.graph.tree import Tree, tree_of

LEAVES = st.builds(lambda number: np.float32(number), st.integers(0, 9))
CONSTANTS = st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3)


def nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(children, max_size=3)
    return some | some.map(tuple) | st.dictionaries(st.text(max_size=3), children, max_size=3)


@given(st.recursive(LEAVES | CONSTANTS, nested))
def test_unflatten_is_the_inverse_of_flatten(value: Any) -> None:
    tree, leaves = tree_of(value, np.float32)
    assert tree.leaf_count == len(leaves)
    again = tree.flatten(value)
    assert all(one is other for one, other in zip(again, leaves, strict=True))
    assert tree.unflatten(leaves) == value


def test_keys_may_come_in_any_order() -> None:
    tree, _ = tree_of({"a": np.float32(1), "b": np.float32(2)}, np.float32)
    assert tree.flatten({"b": np.float32(4), "a": np.float32(3)}) == [3, 4]


def test_a_named_tuple_becomes_a_tuple() -> None:
    pair = namedtuple("pair", "x y")
    tree, leaves = tree_of(pair(np.float32(1), np.float32(2)), np.float32)
    assert tree.unflatten(leaves) == (1, 2)


@pytest.mark.parametrize("value", [object(), {1: np.float32(1)}, {"a": {2, 3}}])
def test_other_values_are_type_errors(value: Any) -> None:
    with pytest.raises(TypeError):
        tree_of(value, np.float32)


def test_a_wrong_number_of_leaves_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 leaves expected, 2 given"):
        Tree("leaf").unflatten([1, 2])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (((), {}), "positional arguments must hold 1 values, not a tuple of 0"),
        ((([np.float32(1)],), {}), r"argument 0 must be a dict, not a list of 1"),
        ((({"k": 3},), {}), r"argument 0\['k'\] must be a tensor, not a int"),
        ((({},), {}), r"argument 0\['k'\] is missing"),
        ((({"k": np.float32(1)},), {"z": 1}), "argument 'z' is not an argument of the network"),
    ],
)
def test_a_difference_is_named_by_its_place(value: Any, reason: str) -> None:
    tree, _ = tree_of((({"k": np.float32(1)},), {}), np.float32)
    with pytest.raises(InputMismatchError, match=reason):
        tree.flatten(value)
