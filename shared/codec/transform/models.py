"""The tables' integers as models of the entropy coder, one set for each class of coefficients.

The coder (constriction's ANS) takes probabilities as floats and makes 24-bit integers of them by sums and
products alone.  All that is given to it here are integers below 2**53, of which such sums are exact, so
that every machine makes the same models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import constriction
import numpy as np
import numpy.typing as npt

from shared.codec.transform.tables import LARGEST, TOTAL, TransformTables

__all__ = ["COUNT_BITS", "NEAR", "ClassModel", "GapModel", "Model", "class_models", "uniform"]

COUNT_BITS = 24
"""A run is of fewer symbols than 2**24."""

NEAR = 3
"""Magnitudes up to this are told from one another at once."""

_SPARSE = int(0.8 * TOTAL)
"""Where zero is at least this likely, the coder goes from one that is not zero to the next."""

_GAP_MODELLED_BITS = 7
_GAP_STEPS = 40
_FIXED_BITS = 20
_START = 2**40

Model: TypeAlias = Any
"""One of constriction's, which has no annotations."""


@dataclass(frozen=True, slots=True)
class GapModel:
    """Of the zeros before the next symbol that is not zero: ``high * 2**bits + low``.

    Of a constant probability of zero both parts are independent, so nothing is lost by coding them apart.
    ``escape`` is the high part of a gap that is sent as it is.  ``low`` is None where ``bits`` is 0.
    """

    bits: int
    high: Model
    low: Model | None
    escape: int


@dataclass(frozen=True, slots=True)
class ClassModel:
    """Of one class; ``zero`` is the probability of zero, of TOTAL.

    Without a ``shift`` a symbol is read in two steps, which is faster than one of many values: ``near`` is
    of -NEAR to NEAR and what is beyond, ``far`` of the magnitudes beyond, NEAR + 1 to LARGEST and escape;
    their sign is even.  In a sparse class, which has a ``gap``, ``near`` is without zero.

    With a ``shift``, ``far`` is of the magnitudes 0 to LARGEST and escape, in units of 2**shift.
    """

    shift: int
    zero: int
    near: Model | None
    far: Model
    gap: GapModel | None

    def count(self, symbols: int) -> Model:
        """Of the bit length of how many among ``symbols`` are not zero."""
        expected = (symbols * (TOTAL - self.zero) // TOTAL).bit_length()
        return _categorical([max(1, TOTAL >> 2 * abs(bits - expected)) for bits in range(COUNT_BITS + 1)])


def class_models(tables: TransformTables) -> tuple[ClassModel, ...]:
    """One for each class."""
    return tuple(
        _class_model([int(weight) for weight in row], int(shift))
        for row, shift in zip(tables.probability, tables.shift, strict=True)
    )


def uniform(bits: int) -> Model:
    """Of numbers of at least one and fewer than 24 bits."""
    return constriction.stream.model.Uniform(2**bits)


def _class_model(weights: list[int], shift: int) -> ClassModel:
    zero = weights[0]
    if shift:
        return ClassModel(shift, zero, None, _categorical(weights), None)
    sides, beyond = weights[1 : NEAR + 1], weights[NEAR + 1 :]
    far = _categorical(beyond)
    # Twice the weights, because half of an odd one is none.
    if zero < _SPARSE:
        return ClassModel(0, zero, _categorical([*sides[::-1], 2 * zero, *sides, 2 * sum(beyond)]), far, None)
    near = _categorical([*sides[::-1], *sides, 2 * sum(beyond)])
    return ClassModel(0, zero, near, far, _gap_model(zero))


def _gap_model(zero: int) -> GapModel:
    bits = min((zero // (TOTAL - zero)).bit_length() - 1, _GAP_MODELLED_BITS)
    ratio = zero << _FIXED_BITS
    ratio //= TOTAL
    low = [_START]
    for _ in range(2**bits - 1):
        low.append(max(1, low[-1] * ratio >> _FIXED_BITS))
    step = ratio
    for _ in range(bits):
        step = max(1, step * step >> _FIXED_BITS)
    high = [_START]
    for _ in range(_GAP_STEPS):
        high.append(max(1, high[-1] * step >> _FIXED_BITS))
    # What is left after the last step, and as much again: zeros come in clusters.
    high[-1] = max(_START >> 16, 2 * high[-1] * 2**_FIXED_BITS // max(1, 2**_FIXED_BITS - step))
    return GapModel(bits, _categorical(high), _categorical(low) if bits else None, _GAP_STEPS)


def _categorical(weights: Sequence[int]) -> Model:
    probabilities: npt.NDArray[np.float64] = np.array(weights, dtype=np.float64)
    return constriction.stream.model.Categorical(probabilities, perfect=False)


assert LARGEST + 2 < 2**COUNT_BITS
