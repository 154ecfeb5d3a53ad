"""How a call's arguments and its result cross the local socket: a plain tree and raw arrays.

In the tree a tensor is its index; ``{"constant": value}``, ``{"tuple": [...]}``, ``{"list": [...]}`` and
``{"dict": {...}}`` stand for everything else.  numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.codec.raw import pack_array, unpack_array
from shared.errors import InputMismatchError, ProtocolError
from shared.wire import Buffer, Message
from shared.wire.messages import TensorHeader

__all__ = ["Arrays", "pack_tree", "unpack_tree"]

Arrays = list[NDArray[Any]]

_CONSTANTS = (bool, int, float, str, type(None))


def pack_tree(value: Any) -> tuple[Any, list[TensorHeader], list[Buffer]]:
    """The tree of a value, and its arrays as headers and payloads, which are views where possible.

    Torch tensors are taken as they are, on whatever device.  Raises InputMismatchError for anything that
    is neither array, tensor, constant, tuple, list nor dict with string keys.
    """
    arrays: Arrays = []
    tree = _plain(value, arrays)
    packed = [pack_array(array, slot) for slot, array in enumerate(arrays)]
    return tree, [header for header, _ in packed], [payload for _, payload in packed]


def unpack_tree(message: Message) -> Any:
    """The value that a LOCAL_INFER or LOCAL_RESULT carries, with new arrays.

    Raises ProtocolError when the tree is none of ours or does not fit its arrays, CodecError when a
    payload does not fit its header.
    """
    arrays = [
        unpack_array(header, payload)
        for header, payload in zip(message.header.tensors, message.payloads, strict=True)
    ]
    return _value(message.header.tree, arrays)


def _plain(value: Any, arrays: Arrays) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        arrays.append(np.asarray(value))
        return len(arrays) - 1
    if isinstance(value, _CONSTANTS):
        return {"constant": value}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InputMismatchError(f"the keys of a dict of inputs must be strings, not {list(value)!r}")
        return {"dict": {key: _plain(item, arrays) for key, item in value.items()}}
    if isinstance(value, tuple | list):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_plain(item, arrays) for item in value]}
    raise InputMismatchError(
        f"inputs are arrays, tensors, or tuples, lists and dicts of them, not {type(value)}"
    )


def _value(tree: Any, arrays: Sequence[NDArray[Any]]) -> Any:
    if isinstance(tree, int) and not isinstance(tree, bool):
        if not 0 <= tree < len(arrays):
            raise ProtocolError(f"a tree refers to array {tree} of {len(arrays)}")
        return arrays[tree]
    if isinstance(tree, dict) and len(tree) == 1:
        ((kind, content),) = tree.items()
        if kind == "constant" and isinstance(content, _CONSTANTS):
            return content
        if kind == "dict" and isinstance(content, dict):
            return {key: _value(item, arrays) for key, item in content.items()}
        if kind in ("tuple", "list") and isinstance(content, list):
            items = [_value(item, arrays) for item in content]
            return tuple(items) if kind == "tuple" else items
    raise ProtocolError("a tree holds something else than array indexes, constants, tuples, lists and dicts")
