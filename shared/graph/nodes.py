"""What a graph is made of: operators, their arguments, units of operators, cuts between units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["UNUSED", "Arg", "BatchInt", "Cut", "EnumArg", "Op", "Ref", "Unit"]

UNUSED = -1
"""In ``Op.outputs``: a result that nothing reads."""


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is the tensor in ``slot``."""

    slot: int


@dataclass(frozen=True, slots=True)
class BatchInt:
    """An argument that is the integer ``per_batch * batch + fixed``."""

    per_batch: int
    fixed: int

    def at(self, batch: int) -> int:
        return self.per_batch * batch + self.fixed


@dataclass(frozen=True, slots=True)
class EnumArg:
    """A constant that only torch has a type for, by name: dtype ``float32``, device ``cpu``, ..."""

    kind: Literal["dtype", "memory_format", "layout", "device"]
    name: str


Arg = Ref | BatchInt | EnumArg | bool | int | float | str | None | tuple["Arg", ...]


def _refs(arg: Arg) -> Iterator[int]:
    if isinstance(arg, Ref):
        yield arg.slot
    elif isinstance(arg, tuple):
        for item in arg:
            yield from _refs(item)


@dataclass(frozen=True, slots=True)
class Op:
    """One call of a functional operator, e.g. ``aten.conv2d.default``.

    ``outputs`` has one slot for each tensor of its result, UNUSED where nothing reads it; getitem of a
    list is thereby part of the operator that makes the list.
    """

    target: str
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    outputs: tuple[int, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        """Slots read, each once, in order of appearance."""
        slots = list(_refs(self.args))
        for _, arg in self.kwargs:
            slots.extend(_refs(arg))
        return tuple(dict.fromkeys(slots))

    @property
    def written(self) -> tuple[int, ...]:
        return tuple(slot for slot in self.outputs if slot != UNUSED)


@dataclass(frozen=True, slots=True)
class Unit:
    """Operators that always run together: one heavy operator and what comes free with it.

    ``name`` is for people, e.g. ``features.3 conv2d+batch_norm+relu6``; ``kind`` is the heaviest
    operator, e.g. ``conv2d``.  ``reads`` are inputs and other units' results, ``writes`` what others,
    or the caller, read.
    """

    index: int
    name: str
    kind: str
    ops: tuple[Op, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Who runs what, and the slots that travel.  ``index`` is -1 for a cut that is not topological."""

    index: int
    name: str
    live: tuple[int, ...]
    edge_units: tuple[int, ...]
    cloud_units: tuple[int, ...]
