"""What a tensor looks like, without its values: dtype, shape and memory order.

Strides are kept as an *order*: the dimensions from the slowest to the fastest varying in memory.
A dense tensor's strides follow from shape and order, and an order cannot describe overlapping or
out-of-bounds memory, which is why it is what travels (``docs/protocol.md``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["DType", "Shape", "SymbolicSpec", "TensorSpec", "order_from_strides", "strides_from_order"]

Shape = tuple[int, ...]


class DType(IntEnum):
    """The element types that may travel.  The number is one byte on the wire and never changes."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    FLOAT64 = 4
    INT8 = 5
    UINT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    BOOL = 10

    @property
    def itemsize(self) -> int:
        return _ITEMSIZE[self]

    @property
    def is_float(self) -> bool:
        return self <= DType.FLOAT64

    @property
    def label(self) -> str:
        """The name that torch and numpy use, e.g. ``float32``."""
        return self.name.lower()

    @classmethod
    def from_label(cls, label: str) -> DType:
        """From ``float32``, ``torch.float32`` or a numpy dtype's name.  Raises KeyError for others."""
        return cls[label.rpartition(".")[2].upper()]


_ITEMSIZE = {
    DType.FLOAT32: 4,
    DType.FLOAT16: 2,
    DType.BFLOAT16: 2,
    DType.FLOAT64: 8,
    DType.INT8: 1,
    DType.UINT8: 1,
    DType.INT16: 2,
    DType.INT32: 4,
    DType.INT64: 8,
    DType.BOOL: 1,
}


def order_from_strides(strides: Shape) -> Shape:
    """Dimensions from slowest to fastest varying; ties (size-1 or expanded dimensions) keep their place."""
    return tuple(sorted(range(len(strides)), key=lambda dim: (-strides[dim], dim)))


def strides_from_order(shape: Shape, order: Shape) -> Shape:
    """Strides, in elements, of the dense tensor of this shape and memory order."""
    strides = [0] * len(shape)
    step = 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One dense tensor of known size; ``order`` as in :func:`order_from_strides`."""

    name: str
    dtype: DType
    shape: Shape
    order: Shape

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def strides(self) -> Shape:
        return strides_from_order(self.shape, self.order)


@dataclass(frozen=True, slots=True)
class SymbolicSpec:
    """A tensor whose sizes are linear in the batch size: each dimension is ``per_batch * batch + fixed``.

    ``dims`` holds the pairs ``(per_batch, fixed)``.
    """

    name: str
    dtype: DType
    dims: tuple[tuple[int, int], ...]
    order: Shape

    def at(self, batch: int) -> TensorSpec:
        return TensorSpec(
            self.name, self.dtype, tuple(per * batch + fixed for per, fixed in self.dims), self.order
        )
