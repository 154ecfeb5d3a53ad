"""Nested tuples, lists and dicts of tensors, flattened to leaves and back.

A tree is what a call's arguments or its result look like.  Values that are not tensors (``None``,
flags, numbers, strings) are part of the tree: as arguments they must be given as captured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shared.errors import InputMismatchError

__all__ = ["Constant", "Tree", "tree_of"]

Constant = bool | int | float | str | None
_CONSTANTS = (bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True)
class Tree:
    """``keys`` go with a dict, ``value`` with a constant, ``children`` with all that nest."""

    kind: Literal["leaf", "constant", "tuple", "list", "dict"]
    children: tuple[Tree, ...] = ()
    keys: tuple[str, ...] = ()
    value: Constant = None

    @property
    def leaf_count(self) -> int:
        return sum(child.leaf_count for child in self.children) if self.kind != "leaf" else 1

    def flatten(self, value: Any) -> list[Any]:
        """The leaves of ``value``.  Raises InputMismatchError naming the place where it differs."""
        return list(self._leaves(value, ""))

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """The inverse of :meth:`flatten`; takes exactly ``leaf_count`` leaves."""
        if len(leaves) != self.leaf_count:
            raise ValueError(f"{self.leaf_count} leaves expected, {len(leaves)} given")
        return self._build(iter(leaves))

    def _leaves(self, value: Any, where: str) -> Iterator[Any]:
        place = where or "the call"
        if self.kind == "leaf":
            if not (hasattr(value, "shape") and hasattr(value, "dtype")):
                raise InputMismatchError(f"{place} must be a tensor, not {_kind_of(value)}")
            yield value
        elif self.kind == "constant":
            if type(value) is not type(self.value) or value != self.value:
                raise InputMismatchError(
                    f"{place} is {self.value!r} in the captured network; it cannot be {value!r}"
                )
        elif self.kind == "dict":
            if not isinstance(value, Mapping):
                raise InputMismatchError(f"{place} must be a dict, not {_kind_of(value)}")
            for key in value:
                if key not in self.keys:
                    raise InputMismatchError(f"{_under(where, key)} is not an argument of the network")
            for key, child in zip(self.keys, self.children, strict=True):
                if key not in value:
                    raise InputMismatchError(f"{_under(where, key)} is missing")
                yield from child._leaves(value[key], _under(where, key))
        else:
            if not isinstance(value, (tuple, list)) or len(value) != len(self.children):
                raise InputMismatchError(
                    f"{place} must hold {len(self.children)} values, not {_kind_of(value)}"
                )
            for index, (child, item) in enumerate(zip(self.children, value, strict=True)):
                yield from child._leaves(item, _under(where, index))

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "constant":
            return self.value
        items = [child._build(leaves) for child in self.children]
        if self.kind == "dict":
            return dict(zip(self.keys, items, strict=True))
        return tuple(items) if self.kind == "tuple" else items


def tree_of(value: Any, leaf_type: type) -> tuple[Tree, list[Any]]:
    """The tree of ``value`` and its leaves, which are the instances of ``leaf_type``.

    Any mapping and any dataclass becomes a dict (a dataclass without its ``None`` fields), a named
    tuple a tuple.  Raises TypeError for what is none of these.
    """
    if isinstance(value, leaf_type):
        return Tree("leaf"), [value]
    if isinstance(value, _CONSTANTS):
        return Tree("constant", value=value), []
    if isinstance(value, Mapping):
        items = dict(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {
            item.name: getattr(value, item.name)
            for item in dataclasses.fields(value)
            if getattr(value, item.name) is not None
        }
    elif isinstance(value, (tuple, list)):
        parts = [tree_of(item, leaf_type) for item in value]
        children = tuple(tree for tree, _ in parts)
        return Tree("list" if isinstance(value, list) else "tuple", children), _joined(parts)
    else:
        raise TypeError(f"a {type(value).__name__} is neither a tensor nor a tuple, list or dict of tensors")
    if not all(isinstance(key, str) for key in items):
        raise TypeError(f"the keys of a dict must be strings, not {list(items)!r}")
    parts = [tree_of(item, leaf_type) for item in items.values()]
    return Tree("dict", tuple(tree for tree, _ in parts), tuple(items)), _joined(parts)


def _joined(parts: list[tuple[Tree, list[Any]]]) -> list[Any]:
    return [leaf for _, leaves in parts for leaf in leaves]


def _under(where: str, key: object) -> str:
    """Names a place for a person: the first two steps are the positional or keyword arguments."""
    if not where:
        return "positional arguments" if key == 0 else "keyword arguments"
    if where == "positional arguments":
        return f"argument {key}"
    if where == "keyword arguments":
        return f"argument {key!r}"
    return f"{where}[{key!r}]"


def _kind_of(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
