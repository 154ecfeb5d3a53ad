"""Tensors to segments and back, by tables that both sides hold.

A segment is one part of the coefficients in the order of their worth::

    byte 0   format, 1
    byte 1   step, from 0, the finest, to STEPS - 1
    byte 2   which segment this is, from 0
    byte 3   how many there are: 1, 2 or 4
    then     words of the entropy coder, four bytes each, little-endian

The first can be decoded alone, the second given the first, and so on: what is missing is taken to be zero,
which is the mean of the calibration inputs.  :func:`pack` puts segments into one payload.
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from shared.codec.transform.coder import MAX_MAGNITUDE, Run, read_runs, write_runs
from shared.codec.transform.models import ClassModel, class_models
from shared.codec.transform.tables import (
    LARGEST,
    LEVELS_PER_OCTAVE,
    PARTS,
    STEPS,
    TOTAL,
    TransformTables,
    dtype_of,
)
from shared.errors import CodecError
from shared.tensor import DType, TensorSpec
from shared.wire.frame import Buffer

__all__ = [
    "SEGMENTS",
    "Decoded",
    "decode",
    "encode",
    "ideal_bits",
    "is_coded_by",
    "pack",
    "quantise",
    "unpack",
]

SEGMENTS = (1, 2, PARTS)
"""Into how many segments a tensor may be split."""

MAX_ELEMENTS = 2**24 - 1
"""Of a tensor, with what its geometry adds at the edges."""

_FORMAT = 1
_HEAD = struct.Struct("<BBBB")
_SIZE = struct.Struct("<I")
_FLOAT = {dtype: getattr(torch, dtype.label) for dtype in DType}
_WORD = np.dtype("<u4")


class Decoded(NamedTuple):
    """``segments`` of ``of`` were decoded; with ``step`` this is the fidelity class that was reached."""

    tensor: torch.Tensor
    step: int
    segments: int
    of: int

    @property
    def is_whole(self) -> bool:
        return self.segments == self.of


def is_coded_by(tables: TransformTables, spec: TensorSpec) -> bool:
    """Whether a tensor of this spec is what the tables are of, in a batch of any size that can be coded."""
    return (
        spec.dtype == tables.dtype
        and len(spec.shape) >= 2
        and spec.shape[1:] == tables.geometry.sample_shape
        and 1 <= spec.shape[0] * tables.geometry.places * tables.pairs <= MAX_ELEMENTS
    )


def encode(tensor: torch.Tensor, tables: TransformTables, step: int, segments: int = 1) -> list[bytes] | None:
    """The segments of a batch of samples, of any strides; packed they take fewer bytes than its elements.

    None where that cannot be: a value that is not finite, one that is some millions of times larger than
    what the tables were made on, or noise that takes more bytes than the elements.  Such a tensor should be
    sent exactly.

    Raises ValueError for a step or a number of segments that there is not, and CodecError for a tensor that
    the tables are not of.
    """
    if segments not in SEGMENTS:
        raise ValueError(f"no {segments} segments; there may be {SEGMENTS}")
    symbols = quantise(tensor, tables, step)
    if symbols is None:
        return None
    prepared = _prepared(tables)
    coded = []
    for index, (start, end) in enumerate(_parts(tables, step, segments)):
        runs = prepared.runs(step, start, end, symbols.shape[1])
        words = write_runs(symbols[start:end].reshape(-1), runs)
        coded.append(_HEAD.pack(_FORMAT, step, index, segments) + words.astype(_WORD, copy=False).tobytes())
    packed_bytes = 1 + _SIZE.size * (segments - 1) + sum(map(len, coded))
    return coded if packed_bytes < tensor.numel() * tensor.element_size() else None


def quantise(tensor: torch.Tensor, tables: TransformTables, step: int) -> npt.NDArray[np.int32] | None:
    """The coefficients in whole steps, pairs of frequency and feature in the order of worth x places.

    None where one is not finite or too large to be coded.  Raises as :func:`encode` does.
    """
    if not 0 <= step < STEPS:
        raise ValueError(f"no step {step}; there are {STEPS}")
    dtype = dtype_of(tensor)
    _require(tables, TensorSpec("tensor", dtype, tuple(tensor.shape), tuple(range(tensor.dim()))))
    scaled = _transform(tensor.detach().cpu(), tables, _prepared(tables), step)
    low, high = (float(end) for end in torch.aminmax(scaled))
    # A comparison with NaN is false.
    if not (low >= -MAX_MAGNITUDE and high <= MAX_MAGNITUDE):
        return None
    symbols: npt.NDArray[np.int32] = scaled.round_().to(torch.int32).numpy()
    return symbols


def ideal_bits(tensor: torch.Tensor, tables: TransformTables, step: int) -> float:
    """The cross-entropy of the tensor's symbols under the tables' probabilities: what a perfect coder of
    independent symbols would take.

    Magnitudes without a probability of their own count as 24 bits more, signs and low bits as they are.
    """
    symbols = quantise(tensor, tables, step)
    if symbols is None:
        return math.inf
    classes = tables.classes(step)[:, None]
    magnitudes = np.abs(symbols)
    high = np.minimum(magnitudes >> tables.shift[classes], LARGEST + 1)
    bits = -np.log2(tables.probability / TOTAL)[classes, high] + tables.shift[classes]
    return float(bits.sum() + np.count_nonzero(magnitudes) + 24 * np.count_nonzero(high > LARGEST))


def decode(segments: Sequence[Buffer], tables: TransformTables, spec: TensorSpec) -> Decoded:
    """A new tensor with the spec's dtype, shape and strides from the first segments or from all.

    Nothing is allocated before the segments' heads agree with the tables and the spec, and then no more than
    eight times what float32 elements of the spec's shape take.  Raises CodecError for segments that
    :func:`encode` does not write, and for none.
    """
    _require(tables, spec)
    if not segments:
        raise CodecError("no segment to decode")
    step, of = _heads(segments)
    prepared = _prepared(tables)
    places = spec.shape[0] * tables.geometry.places
    symbols = np.zeros((tables.pairs, places), dtype=np.int32)
    for segment, (start, end) in zip(segments, _parts(tables, step, of), strict=False):
        words = np.frombuffer(segment, dtype=_WORD, offset=_HEAD.size).astype(np.uint32, copy=False)
        runs = prepared.runs(step, start, end, places)
        symbols[start:end] = read_runs(words, runs).reshape(end - start, places)
    return Decoded(_restored(symbols, tables, prepared, step, spec), step, len(segments), of)


def pack(segments: Sequence[Buffer]) -> bytes:
    """All segments in one payload: their number, the size of each but the last, then each."""
    sizes = [memoryview(segment).nbytes for segment in segments]
    heads = [bytes([len(segments)]), *(_SIZE.pack(size) for size in sizes[:-1])]
    return b"".join([*heads, *segments])


def unpack(payload: Buffer) -> list[memoryview]:
    """The segments of :func:`pack`, as views.  Raises CodecError for what is none."""
    view = memoryview(payload).cast("B")
    count = view[0] if view.nbytes else 0
    start = 1 + _SIZE.size * (count - 1)
    if count not in SEGMENTS or view.nbytes < start:
        raise CodecError(f"a payload of {view.nbytes} bytes and {count} segments")
    sizes = [size for (size,) in _SIZE.iter_unpack(view[1:start])]
    ends = list(itertools.accumulate([*sizes], initial=start))
    if ends[-1] > view.nbytes:
        raise CodecError(f"a payload of {view.nbytes} bytes with segments that end at {ends[-1]}")
    return [view[first:last] for first, last in itertools.pairwise([*ends, view.nbytes])]


class _Prepared:
    """What is made of tables once: torch's view of their arrays, models, and the runs of each step."""

    def __init__(self, tables: TransformTables) -> None:
        self.order = torch.from_numpy(tables.order)
        weight = torch.from_numpy(np.array(tables.weight)).reshape(-1, 1)[self.order]
        self.weight = weight
        self.unweight = 1 / weight
        self.mean = torch.from_numpy(np.array(tables.mean)) * tables.geometry.frequencies**0.5
        self.forward = torch.from_numpy(np.array(tables.forward))
        self.inverse = torch.from_numpy(np.array(tables.inverse))
        self._offset = np.array(tables.offset)
        self._models: tuple[ClassModel, ...] = class_models(tables)
        self._classes = functools.cache(tables.classes)

    def offsets(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every pair, what a value is changed by for each unit of it within 1, within 2 and within 3."""
        one, two, more = torch.from_numpy(self._offset[self._classes(step)]).unsqueeze(2).unbind(1)
        return one - (two - one), (two - one) - (more - two), more - two

    def runs(self, step: int, start: int, end: int, places: int) -> list[Run]:
        """Those of the pairs from ``start`` to ``end`` in the order of worth."""
        classes = self._classes(step)[start:end]
        if not len(classes):
            return []
        edges = [0, *(np.flatnonzero(np.diff(classes)) + 1).tolist(), len(classes)]
        return [
            Run(self._models[classes[first]], (last - first) * places)
            for first, last in itertools.pairwise(edges)
        ]


_PREPARED: weakref.WeakKeyDictionary[TransformTables, _Prepared] = weakref.WeakKeyDictionary()


def _prepared(tables: TransformTables) -> _Prepared:
    # Two threads may both make one; they are alike.
    found = _PREPARED.get(tables)
    if found is None:
        found = _PREPARED[tables] = _Prepared(tables)
    return found


def _require(tables: TransformTables, spec: TensorSpec) -> None:
    if not is_coded_by(tables, spec):
        raise CodecError(
            f"{spec.name} is {spec.dtype.label} {spec.shape}; the transform's tables are of "
            f"{tables.dtype.label} samples of {tables.geometry.sample_shape}, at most {MAX_ELEMENTS} elements"
        )


def _heads(segments: Sequence[Buffer]) -> tuple[int, int]:
    """The step and the number of all segments, once every head is as it should be."""
    first: tuple[int, int] | None = None
    for position, segment in enumerate(segments):
        size = memoryview(segment).nbytes
        if size < _HEAD.size or size % _WORD.itemsize:
            raise CodecError(f"a segment of {size} bytes")
        version, step, index, of = _HEAD.unpack_from(segment)
        if version != _FORMAT or step >= STEPS or of not in SEGMENTS or index != position or index >= of:
            raise CodecError(f"segment {position} says that it is {index} of {of} at step {step}")
        if first is not None and first != (step, of):
            raise CodecError("segments of two payloads")
        first = step, of
    assert first is not None
    return first


def _parts(tables: TransformTables, step: int, segments: int) -> list[tuple[int, int]]:
    every = PARTS // segments
    ends = [*tables.bounds[step].tolist(), tables.pairs][every - 1 :: every]
    return list(itertools.pairwise([0, *ends]))


def _transform(tensor: torch.Tensor, tables: TransformTables, prepared: _Prepared, step: int) -> torch.Tensor:
    """Coefficients in steps: a new tensor, pairs in the order of worth x places."""
    coefficients = tables.geometry.forward(tensor.to(torch.float32))
    coefficients[0] -= prepared.mean[:, None]
    coefficients = _by_group(coefficients, prepared.forward, tables.groups)
    flat = coefficients.reshape(tables.pairs, -1).index_select(0, prepared.order)
    return flat.mul_(prepared.weight * _inverse_step(step))


def _restored(
    symbols: npt.NDArray[np.int32], tables: TransformTables, prepared: _Prepared, step: int, spec: TensorSpec
) -> torch.Tensor:
    values = torch.from_numpy(symbols).to(torch.float32)
    # A sum of clamped values is the magnitude's offset with its sign, in a few passes over all.
    restored = values.clone()
    for most, offset in enumerate(prepared.offsets(step), start=1):
        restored.addcmul_(values.clamp(-most, most), offset)
    scaled = restored.mul_(prepared.unweight / _inverse_step(step))
    coefficients = torch.empty_like(scaled)
    coefficients.index_copy_(0, prepared.order, scaled)
    shape = tables.geometry.frequencies, tables.geometry.features, -1
    coefficients = _by_group(coefficients.view(shape), prepared.inverse, tables.groups)
    coefficients[0] += prepared.mean[:, None]
    elements = tables.geometry.inverse(coefficients)
    if not spec.dtype.is_float:
        elements = elements.round().clamp(0, 255)
    tensor = torch.empty_strided(spec.shape, spec.strides, dtype=_FLOAT[spec.dtype])
    return tensor.copy_(elements)


def _by_group(coefficients: torch.Tensor, bases: torch.Tensor, groups: Sequence[int]) -> torch.Tensor:
    if not len(bases):
        return coefficients
    ends = [*groups[1:], len(coefficients)]
    turned = [base @ coefficients[start:end] for base, start, end in zip(bases, groups, ends, strict=True)]
    return torch.cat(turned)


def _inverse_step(step: int) -> float:
    """Of a step in units of the finest."""
    return float(2.0 ** (-step / LEVELS_PER_OCTAVE))
