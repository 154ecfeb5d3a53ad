"""Quantised coefficients to words and back, class by class.

A run is a stretch of symbols of one class.  Where most are zero, only how many are not, the gaps between
them and their values are coded, so that the time taken grows with what is not zero.  The words are those
of an ANS coder, which is empty when everything has been read: what is left over is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import constriction
import numpy as np
import numpy.typing as npt

from shared.codec.transform.models import COUNT_BITS, NEAR, ClassModel, GapModel, Model, uniform
from shared.codec.transform.tables import LARGEST
from shared.errors import CodecError

__all__ = ["MAX_MAGNITUDE", "Run", "read_runs", "write_runs"]

MAX_MAGNITUDE = 2**24 - 1
"""Of a symbol that can be coded."""

_ESCAPE = LARGEST + 1
_HALF_BITS = 12
_HALF = uniform(_HALF_BITS)
_SIGN = uniform(1)

Symbols = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]


class Run(NamedTuple):
    """``size`` symbols of one class, less than 2**24."""

    model: ClassModel
    size: int


class _Writer:
    """Collects what is to be coded, in the order in which it will be read."""

    def __init__(self) -> None:
        self._parts: list[tuple[Symbols, Model]] = []

    def add(self, symbols: Symbols, model: Model) -> None:
        if len(symbols):
            self._parts.append((symbols, model))

    def words(self) -> Words:
        coder = constriction.stream.stack.AnsCoder()
        for symbols, model in reversed(self._parts):
            coder.encode_reverse(symbols, model)
        words: Words = coder.get_compressed()
        return words


class _Reader:
    def __init__(self, words: Words) -> None:
        try:
            self._coder = constriction.stream.stack.AnsCoder(words)
        except ValueError as error:
            raise CodecError(f"a segment that no coder has written: {error}") from error

    def read(self, model: Model, count: int) -> Symbols:
        symbols: Symbols = self._coder.decode(model, count)
        return symbols

    def finish(self) -> None:
        if not self._coder.is_empty():
            raise CodecError("a segment holds more than its symbols")


def write_runs(symbols: Symbols, runs: Sequence[Run]) -> Words:
    """The words of all runs, one after another in ``symbols``, none beyond MAX_MAGNITUDE."""
    writer = _Writer()
    start = 0
    for model, size in runs:
        part = symbols[start : start + size]
        start += size
        if model.gap is not None:
            (places,) = np.nonzero(part)
            _write_count(writer, len(places), model, size)
            _write_places(writer, places, model.gap)
            _write_values(writer, part[places], model)
        elif model.near is not None:
            _write_values(writer, part, model)
        else:
            _write_large(writer, part, model)
    return writer.words()


def read_runs(words: Words, runs: Sequence[Run]) -> Symbols:
    """The symbols of all runs.  Raises CodecError for words that :func:`write_runs` does not make of them."""
    reader = _Reader(words)
    symbols = np.zeros(sum(run.size for run in runs), dtype=np.int32)
    start = 0
    for model, size in runs:
        part = symbols[start : start + size]
        start += size
        if model.gap is not None:
            count = _read_count(reader, model, size)
            if count:
                places = _read_places(reader, count, model.gap, size)
                part[places] = _read_values(reader, count, model)
        elif model.near is not None:
            part[:] = _read_values(reader, size, model)
        else:
            part[:] = _read_large(reader, size, model)
    reader.finish()
    return symbols


def _write_values(writer: _Writer, values: Symbols, model: ClassModel) -> None:
    """Of a class without a shift: which of the near values, then what lies beyond."""
    near = values + NEAR
    if model.gap is not None:
        near -= values > 0
    beyond = 2 * NEAR + (model.gap is None)
    # One comparison for both sides: what is below wraps round.
    (places,) = np.nonzero((values + NEAR).view(np.uint32) > 2 * NEAR)
    far = values[places]
    near[places] = beyond
    writer.add(near, model.near)
    _write_magnitudes(writer, np.abs(far), model.far, NEAR + 1)
    writer.add((far < 0).astype(np.int32), _SIGN)


def _read_values(reader: _Reader, count: int, model: ClassModel) -> Symbols:
    values = reader.read(model.near, count)
    beyond = 2 * NEAR + (model.gap is None)
    (places,) = np.nonzero(values == beyond)
    if model.gap is not None:
        values += values >= NEAR
    values -= NEAR
    if len(places):
        far = _read_magnitudes(reader, len(places), model.far, NEAR + 1)
        values[places] = far * (1 - 2 * reader.read(_SIGN, len(places)))
    return values


def _write_large(writer: _Writer, values: Symbols, model: ClassModel) -> None:
    """Of a class with a shift: high bits of the magnitudes, low bits as they are, signs."""
    magnitudes = np.abs(values)
    _write_magnitudes(writer, magnitudes >> model.shift, model.far, 0)
    writer.add(magnitudes & 2**model.shift - 1, uniform(model.shift))
    writer.add((values[values != 0] < 0).astype(np.int32), _SIGN)


def _read_large(reader: _Reader, count: int, model: ClassModel) -> Symbols:
    values = _read_magnitudes(reader, count, model.far, 0, MAX_MAGNITUDE >> model.shift)
    values <<= model.shift
    values |= reader.read(uniform(model.shift), count)
    (places,) = np.nonzero(values)
    values[places] *= 1 - 2 * reader.read(_SIGN, len(places))
    return values


def _write_magnitudes(writer: _Writer, magnitudes: Symbols, model: Model, least: int) -> None:
    """Numbers from ``least`` up; those above LARGEST escape and follow in two halves."""
    escaped = magnitudes[magnitudes > LARGEST] - _ESCAPE
    writer.add(np.minimum(magnitudes, _ESCAPE) - least, model)
    writer.add(escaped >> _HALF_BITS, _HALF)
    writer.add(escaped & 2**_HALF_BITS - 1, _HALF)


def _read_magnitudes(
    reader: _Reader, count: int, model: Model, least: int, most: int = MAX_MAGNITUDE
) -> Symbols:
    magnitudes = reader.read(model, count)
    magnitudes += least
    (escaped,) = np.nonzero(magnitudes == _ESCAPE)
    if len(escaped):
        magnitudes[escaped] += reader.read(_HALF, len(escaped)) << _HALF_BITS
        magnitudes[escaped] += reader.read(_HALF, len(escaped))
        if magnitudes.max() > most:
            raise CodecError("a segment holds a coefficient out of range")
    return magnitudes


def _write_count(writer: _Writer, count: int, model: ClassModel, size: int) -> None:
    bits = count.bit_length()
    writer.add(np.array([bits], dtype=np.int32), model.count(size))
    if bits > 1:
        writer.add(np.array([count - 2 ** (bits - 1)], dtype=np.int32), uniform(bits - 1))


def _read_count(reader: _Reader, model: ClassModel, size: int) -> int:
    bits = int(reader.read(model.count(size), 1)[0])
    if bits <= 1:
        return bits
    count: int = 2 ** (bits - 1) + int(reader.read(uniform(bits - 1), 1)[0])
    if count > size:
        raise CodecError(f"a segment holds {count} coefficients in a run of {size}")
    return count


def _write_places(writer: _Writer, places: npt.NDArray[np.int64], gap: GapModel) -> None:
    gaps = np.diff(places, prepend=-1).astype(np.int32) - 1
    high = gaps >> gap.bits
    long = gaps[high >= gap.escape]
    writer.add(np.minimum(high, gap.escape), gap.high)
    writer.add(long >> _HALF_BITS, _HALF)
    writer.add(long & 2**_HALF_BITS - 1, _HALF)
    if gap.low is not None:
        writer.add(gaps[high < gap.escape] & 2**gap.bits - 1, gap.low)


def _read_places(reader: _Reader, count: int, gap: GapModel, size: int) -> npt.NDArray[np.int64]:
    gaps = reader.read(gap.high, count)
    long = gaps == gap.escape
    some = bool(long.any())
    if some:
        number = int(np.count_nonzero(long))
        far = (reader.read(_HALF, number) << _HALF_BITS) + reader.read(_HALF, number)
        if (far >> gap.bits < gap.escape).any():
            raise CodecError("a segment holds a short gap among the long ones")
    gaps <<= gap.bits
    if gap.low is not None:
        if some:
            gaps[~long] |= reader.read(gap.low, count - number)
        else:
            gaps |= reader.read(gap.low, count)
    if some:
        gaps[long] = far
    gaps += 1
    places = np.cumsum(gaps, dtype=np.int64) - 1
    if places[-1] >= size:
        raise CodecError("a segment holds coefficients beyond the end of a run")
    return places


assert COUNT_BITS == 2 * _HALF_BITS
