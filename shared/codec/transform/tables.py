"""What both sides must agree on to code one tensor: geometry, bases, scales and probabilities.

The tables travel with a model's registration as bytes without code (safetensors), and are checked in full
before they are used.  Everything that chooses or weighs a symbol is an integer, so that two machines can
not disagree about a bit; the floats only say what the symbols stand for.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.codec.transform.geometry import Geometry
from shared.errors import CodecError
from shared.tensor import DType
from shared.wire.frame import Buffer

__all__ = [
    "CLASSES",
    "CODED_DTYPES",
    "LARGEST",
    "LEVELS_PER_OCTAVE",
    "MAX_TABLE_BYTES",
    "PARTS",
    "STEPS",
    "TOTAL",
    "ZERO_LEVEL",
    "TransformTables",
    "dtype_of",
    "tables_from_bytes",
    "tables_to_bytes",
]

STEPS = 28
"""Step sizes of the ladder, each 2**(1/4) times the one before; number 0 is the finest."""

LEVELS_PER_OCTAVE = 4
CLASSES = 64
"""Probability models, by how large a coefficient is in steps: class ``ZERO_LEVEL`` is of a mean magnitude of
one step, and every class is 2**(1/4) times the one below it."""

ZERO_LEVEL = 20

LARGEST = 40
"""Magnitudes, in units of 2**shift steps, that have a probability of their own; what is larger escapes."""

TOTAL = 2**20
"""The probabilities of a model, as integers, add up to this."""

PARTS = 4
"""Segments that a payload can be split into, each with a part of the coefficients."""

CODED_DTYPES = frozenset({DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64, DType.UINT8})
"""What the transform is for: numbers of which the neighbours mean nearly the same."""

MAX_TABLE_BYTES = 64 * 2**20
_MAX_FEATURES = 4096
_MAX_GROUPS = 8
_MAX_LEVEL = 1000
_MAX_SHIFT = 12
_MAX_ABOUT_BYTES = 1024
_FORMAT = 1

Floats = npt.NDArray[np.float32]

_ARRAYS = {
    "mean": np.float32,
    "forward": np.float32,
    "inverse": np.float32,
    "weight": np.float32,
    "level": np.int16,
    "probability": np.uint32,
    "shift": np.uint8,
    "offset": np.float32,
    "bounds": np.int32,
    "expected_bits": np.float32,
}


@dataclass(frozen=True, eq=False)
class TransformTables:
    """Made by :func:`shared.codec.transform.fit` or :func:`tables_from_bytes`, and valid from then on.

    - ``finest``: step 0 has the size 2**(finest / 4) in the coordinates in which errors were weighed, so that
      one size can be chosen for several tensors that were fitted with gradients of the same output.
    - ``mean``: of each feature.
    - ``groups``: the first frequency of each group of frequencies; ``forward`` and ``inverse`` hold one
      features x features matrix for each, or none where features are left as they are.
    - ``weight``: frequencies x features, from coefficients to steps of the finest size.
    - ``level``: frequencies x features, the class of a coefficient at step 0, beyond both ends too.
    - ``probability``: classes x magnitudes 0 to LARGEST and escape.
    - ``shift``: of each class, how many low bits of a magnitude are sent as they are.
    - ``offset``: of each class, what is added to the magnitudes 1, 2 and more when they are decoded.
    - ``bounds``: of each step, where in the order of worth a segment ends, for all segments but the last.
    - ``expected_bits``: of each step, for one sample.
    """

    geometry: Geometry
    dtype: DType
    finest: int
    mean: Floats
    groups: tuple[int, ...]
    forward: Floats
    inverse: Floats
    weight: Floats
    level: npt.NDArray[np.int16]
    probability: npt.NDArray[np.uint32]
    shift: npt.NDArray[np.uint8]
    offset: Floats
    bounds: npt.NDArray[np.int32]
    expected_bits: Floats

    def __post_init__(self) -> None:
        _check(self)

    @property
    def pairs(self) -> int:
        """Pairs of a frequency and a feature: coefficients at one place."""
        return self.geometry.frequencies * self.geometry.features

    @functools.cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """Every pair, as frequency * features + feature, from the one of most worth to that of least."""
        return np.argsort(-self.level.astype(np.int32).reshape(-1), kind="stable")

    @functools.cached_property
    def digest(self) -> str:
        """Names the tables by all their content: both sides compare it before they use them."""
        return hashlib.sha256(tables_to_bytes(self)).hexdigest()

    def classes(self, step: int) -> npt.NDArray[np.int32]:
        """The class of every pair at a step, in ``order``."""
        levels = self.level.reshape(-1)[self.order].astype(np.int32)
        return np.clip(levels - step, 0, CLASSES - 1)


def dtype_of(tensor: torch.Tensor) -> DType:
    """Raises CodecError for a dtype that cannot travel at all."""
    try:
        return DType.from_label(str(tensor.dtype))
    except KeyError:
        raise CodecError(f"a tensor of {tensor.dtype} cannot be coded; convert it to float32") from None


def tables_to_bytes(tables: TransformTables) -> bytes:
    """The same bytes for the same tables, on every machine."""
    geometry = tables.geometry
    about = {
        "format": _FORMAT,
        "sample_shape": list(geometry.sample_shape),
        "feature": geometry.feature,
        "block": list(geometry.block),
        "dtype": int(tables.dtype),
        "finest": tables.finest,
        "groups": list(tables.groups),
    }
    text = json.dumps(about, sort_keys=True).encode()
    arrays = {name: np.ascontiguousarray(getattr(tables, name)) for name in _ARRAYS}
    data: bytes = save({"about": np.frombuffer(text, dtype=np.uint8), **arrays})
    return data


def tables_from_bytes(data: Buffer) -> TransformTables:
    """The tables in ``data``, or CodecError for anything that :func:`tables_to_bytes` does not write."""
    if memoryview(data).nbytes > MAX_TABLE_BYTES:
        raise CodecError(
            f"transform tables of {memoryview(data).nbytes} bytes; at most {MAX_TABLE_BYTES} are read"
        )
    try:
        arrays: dict[str, Any] = load(bytes(data))
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CodecError(f"transform tables that cannot be read: {error}") from error
    if set(arrays) != {"about", *_ARRAYS}:
        raise CodecError(f"transform tables hold {sorted(arrays)}")
    about = _about(arrays.pop("about"))
    geometry = Geometry(about["sample_shape"], about["feature"], about["block"])
    for name, kind in _ARRAYS.items():
        if arrays[name].dtype != np.dtype(kind):
            raise CodecError(f"transform tables hold {name} as {arrays[name].dtype}")
    return TransformTables(
        geometry, dtype=about["dtype"], finest=about["finest"], groups=about["groups"], **arrays
    )


def _check(tables: TransformTables) -> None:
    """Raises CodecError unless every size and every number is one that both coders can work with."""
    geometry = tables.geometry
    features, frequencies = geometry.features, geometry.frequencies
    if tables.dtype not in CODED_DTYPES:
        raise CodecError(f"transform tables of {tables.dtype.label}")
    if abs(tables.finest) > _MAX_LEVEL:
        raise CodecError("transform tables of steps out of range")
    if not 1 <= features <= _MAX_FEATURES:
        raise CodecError(f"transform tables of {features} features; at most {_MAX_FEATURES} are coded")
    bases = tables.forward.shape[0] if tables.forward.ndim == 3 else -1
    groups = tables.groups
    if not (
        1 <= len(groups) <= _MAX_GROUPS
        and groups[0] == 0
        and all(first < second for first, second in zip(groups, (*groups[1:], frequencies), strict=True))
        and bases in (0, len(groups))
    ):
        raise CodecError(f"transform tables with groups {groups} of {frequencies} frequencies")
    square = (bases, features, features)
    shapes = {
        "mean": (features,),
        "forward": square,
        "inverse": square,
        "weight": (frequencies, features),
        "level": (frequencies, features),
        "probability": (CLASSES, LARGEST + 2),
        "shift": (CLASSES,),
        "offset": (CLASSES, 3),
        "bounds": (STEPS, PARTS - 1),
        "expected_bits": (STEPS,),
    }
    for name, shape in shapes.items():
        array = getattr(tables, name)
        if array.shape != shape:
            raise CodecError(f"transform tables hold {name} of {array.shape} where {shape} fits")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CodecError(f"transform tables hold {name} that is not finite")
    if not (tables.weight > 0).all():
        raise CodecError("transform tables hold a weight that is not positive")
    if np.abs(tables.level.astype(np.int32)).max() > _MAX_LEVEL:
        raise CodecError("transform tables hold a level out of range")
    if tables.probability.min() < 1 or (tables.probability.astype(np.int64).sum(axis=1) != TOTAL).any():
        raise CodecError("transform tables hold probabilities that do not add up")
    if tables.shift.max() > _MAX_SHIFT or np.abs(tables.offset).max() > 1:
        raise CodecError("transform tables hold a shift or an offset out of range")
    ends = np.concatenate(
        [
            np.zeros((STEPS, 1), np.int32),
            tables.bounds,
            np.full((STEPS, 1), frequencies * features, np.int32),
        ],
        axis=1,
    )
    if (np.diff(ends, axis=1) < 0).any():
        raise CodecError("transform tables hold segments out of order")


def _about(array: npt.NDArray[Any]) -> dict[str, Any]:
    if array.nbytes > _MAX_ABOUT_BYTES:
        raise CodecError("transform tables that say too much of themselves")
    try:
        about = json.loads(array.tobytes())
    except (ValueError, RecursionError) as error:
        raise CodecError(f"transform tables that do not say what they are of: {error}") from error
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise CodecError("transform tables of another format; make them again with this version")
    found: dict[str, Any] = {
        name: about.get(name) for name in ("sample_shape", "feature", "block", "dtype", "finest", "groups")
    }
    lists = ("sample_shape", "block", "groups")
    numbers = [found["feature"], found["finest"], found["dtype"]]
    for name in lists:
        if not isinstance(found[name], list):
            raise CodecError(f"transform tables of {found}")
        numbers += found[name]
    if not (
        all(type(number) is int for number in numbers)
        and len(found["block"]) == 2
        and found["dtype"] in set(DType)
    ):
        raise CodecError(f"transform tables of {found}")
    return {**found, **{name: tuple(found[name]) for name in lists}, "dtype": DType(found["dtype"])}
