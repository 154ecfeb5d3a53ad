"""Learn the tables of one tensor from samples of it: bases, scales and probabilities, in closed form.

Bases are principal components of the features, for each band of frequencies on its own, in coordinates in
which an error counts as much as it changes the network's output (the Fisher information, where gradients
are given).  One step size for all coefficients is then the best for a given rate (reverse water-filling:
Cover & Thomas, Elements of Information Theory, section 10.3.3).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from shared.codec.transform.geometry import Geometry, geometries
from shared.codec.transform.tables import (
    CLASSES,
    CODED_DTYPES,
    LARGEST,
    LEVELS_PER_OCTAVE,
    PARTS,
    STEPS,
    TOTAL,
    ZERO_LEVEL,
    TransformTables,
    dtype_of,
)
from shared.errors import CodecError
from shared.tensor import DType, Shape

__all__ = ["FINEST_BITS", "fit", "is_fitted"]

FINEST_BITS = 4.5
"""Bits a coefficient takes at the finest step, of an average sample, as a Laplace distribution has it."""

_MAX_BASIS_FEATURES = 512
_MAX_GROUPED_FEATURES = 160
_BANDS = (1, 3, 6)
_COMPARED = 24
_ENOUGH = 4
_NEARLY = 1.01
_RESOLUTION = 2.0**-20
_ISOTROPIC = 0.1
_SHARED_METRIC = 0.2
_SHARED_COVARIANCE = 0.02
_FREQUENCY_POWER = 0.8
_MOST_WEIGHT = 8.0
_PRIOR_PLACES = 4.0
_PRIOR_SYMBOLS = 30.0
_PRIOR_OFFSETS = 20.0
_MOST_SYMBOLS = 2**20
_MOST_EXPONENT = 400
_TINY = 1e-30
_UNSHIFTED = 5.0


def is_fitted(dtype: DType, shape: Shape) -> bool:
    """Whether :func:`fit` can make tables for batches of this dtype and shape."""
    return dtype in CODED_DTYPES and 2 <= len(shape) <= 4 and min(shape) >= 1


def fit(
    samples: torch.Tensor, gradients: torch.Tensor | None = None, geometry: Geometry | None = None
) -> TransformTables:
    """Tables for tensors like ``samples``, a batch of at least two.

    ``gradients`` are of what should not change by the tensor, for any number of samples, see
    :mod:`shared.codec.transform.sensitivity`; without them every element counts alike.  Of the geometries
    that there may be, the one is taken that is expected to take the fewest bits, fitted on every other half
    of the samples and measured on the other, unless one is given.

    Raises CodecError for a dtype or shape that is not coded, and for samples or gradients that are not
    finite or do not fit together.
    """
    shape = tuple(samples.shape)
    dtype = dtype_of(samples)
    if not is_fitted(dtype, shape) or shape[0] < 2:
        raise CodecError(
            f"no transform can be fitted to {dtype.label} {shape}: samples of one to three dimensions"
        )
    values = samples.detach().to(torch.float32)
    if gradients is not None:
        if tuple(gradients.shape[1:]) != shape[1:]:
            raise CodecError(f"gradients of {tuple(gradients.shape)} for samples of {shape}")
        gradients = gradients.detach().to(torch.float32)
        if not torch.isfinite(gradients).all():
            raise CodecError("gradients that are not finite")
    if not torch.isfinite(values).all():
        raise CodecError("samples that are not finite")
    candidates = [geometry] if geometry is not None else list(geometries(shape[1:]))
    if len(candidates) > 1:
        candidates = [_cheapest(values, gradients, candidates)]
    return _tables(_learned(values, gradients, candidates[0]), dtype)


class _Fitted(NamedTuple):
    """``coefficients`` are of the samples, frequencies x features x places, ``scale`` times the true ones
    where an error weighs more; places of one sample are neighbours.  ``least`` is the smallest difference
    of a coefficient that float32 tells from rounding."""

    geometry: Geometry
    mean: torch.Tensor
    groups: tuple[int, ...]
    forward: torch.Tensor
    inverse: torch.Tensor
    scale: torch.Tensor
    coefficients: torch.Tensor
    least: float


def _cheapest(
    values: torch.Tensor, gradients: torch.Tensor | None, candidates: Sequence[Geometry]
) -> Geometry:
    """The one that takes the fewest bits in the half of the samples that it was not fitted to, and of those
    that take nearly as few the one with the smallest tables."""
    # Fewer samples will do to compare by.
    values = values[:: max(1, len(values) // _COMPARED)]
    gradients = None if gradients is None else gradients[:: max(1, len(gradients) // _COMPARED)]
    half = len(values) // 2
    step: float | None = None
    costs = []
    for candidate in candidates:
        learned = _basis(values[:half], gradients, candidate)
        if step is None:
            step = 2 ** ((_finest(learned) + STEPS // 2) / LEVELS_PER_OCTAVE)
        costs.append(_cost(learned, _coefficients(learned, values[half:]), step))
    near = [each for each, cost in zip(candidates, costs, strict=True) if cost <= _NEARLY * min(costs)]
    return min(near, key=lambda each: each.frequencies * each.features)


def _learned(values: torch.Tensor, gradients: torch.Tensor | None, geometry: Geometry) -> _Fitted:
    fitted = _basis(values, gradients, geometry)
    frequencies, features, places = fitted.coefficients.shape
    if len(fitted.forward) and frequencies * places < _ENOUGH * features:
        # So few samples look much more alike in their own basis than any other will: scales are then
        # learned from those that the basis was not fitted to.
        half = len(values) // 2
        fitted = _basis(values[:half], gradients, geometry)
        fitted = fitted._replace(coefficients=_coefficients(fitted, values[half:]))
    return fitted


def _basis(values: torch.Tensor, gradients: torch.Tensor | None, geometry: Geometry) -> _Fitted:
    features, frequencies = geometry.features, geometry.frequencies
    feature_dim = geometry.feature + 1
    mean = values.mean([dim for dim in range(values.dim()) if dim != feature_dim])
    coefficients = geometry.forward(values)
    coefficients[0] -= mean[:, None] * math.sqrt(frequencies)
    slopes = None if gradients is None else geometry.forward(gradients)
    if features > _MAX_BASIS_FEATURES:
        return _without_basis(geometry, mean, coefficients, slopes, float(values.abs().max()))
    groups = _groups(geometry, coefficients.shape[2])
    ends = (*groups[1:], frequencies)
    whole = _second_moment(coefficients)
    metric = None if slopes is None else _second_moment(slopes)
    forward, inverse = [], []
    scale = torch.ones(frequencies, features)
    for start, end in zip(groups, ends, strict=True):
        part = coefficients[start:end]
        slope = None if slopes is None else slopes[start:end]
        root, unroot = _roots(slope, metric, features)
        covariance = _blend(_second_moment(part), whole, _SHARED_COVARIANCE)
        _, vectors = torch.linalg.eigh(root @ covariance @ root)
        vectors = vectors.flip(1)
        forward.append((vectors.t() @ root).float())
        inverse.append((unroot @ vectors).float())
        coefficients[start:end] = forward[-1] @ part
        if slope is not None:
            scale[start:end] = _emphasis((inverse[-1].t() @ slope).square().mean(2))
    coefficients *= scale[:, :, None]
    turned = torch.stack(forward)
    least = _RESOLUTION * float(values.abs().max() * turned.norm(dim=2).mean() * scale.mean())
    return _Fitted(geometry, mean, groups, turned, torch.stack(inverse), scale, coefficients, least)


def _without_basis(
    geometry: Geometry,
    mean: torch.Tensor,
    coefficients: torch.Tensor,
    slopes: torch.Tensor | None,
    largest: float,
) -> _Fitted:
    """So many features that a matrix of them would be larger and less certain than it is worth."""
    none = torch.empty(0, geometry.features, geometry.features)
    scale = torch.ones(coefficients.shape[:2])
    if slopes is not None:
        power = slopes.square().mean(2)
        scale = _emphasis(power) * power.mean().clamp_min(_TINY).sqrt()
    coefficients *= scale[:, :, None]
    least = _RESOLUTION * largest * float(scale.mean())
    return _Fitted(geometry, mean, (0,), none, none, scale, coefficients, least)


def _groups(geometry: Geometry, places: int) -> tuple[int, ...]:
    """Bands of frequencies with a basis of their own: such as have samples enough for one."""
    if geometry.features > _MAX_GROUPED_FEATURES:
        return (0,)
    bands = geometry.bands()
    groups = [0]
    for band in _BANDS:
        start = sum(each < band for each in bands)
        if (
            start < len(bands)
            and (start - groups[-1]) * places >= _ENOUGH * geometry.features
            and start > groups[-1]
        ):
            groups.append(start)
    return tuple(groups)


def _second_moment(coefficients: torch.Tensor) -> torch.Tensor:
    """Features x features, of one coefficient on average."""
    rows = coefficients.transpose(0, 1).reshape(coefficients.shape[1], -1)
    return (rows @ rows.t()).double() / rows.shape[1]


def _blend(own: torch.Tensor, shared: torch.Tensor, share: float) -> torch.Tensor:
    """Some of ``shared``, at the size of ``own``: what few samples say of one band is uncertain."""
    size, whole = own.trace(), shared.trace()
    if not whole > 0:
        return own
    return (1 - share) * own + share * shared * (size / whole)


def _roots(
    slope: torch.Tensor | None, metric: torch.Tensor | None, features: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The square root of how much errors of a group weigh, and its inverse."""
    one = torch.eye(features, dtype=torch.float64)
    if slope is None or metric is None or not metric.trace() > 0:
        return one, one
    own = _second_moment(slope)
    size = float(own.trace() / features)
    overall = float(metric.trace() / features)
    shaped = _blend(own / max(size, _TINY), metric / overall, _SHARED_METRIC)
    shaped = _blend(shaped, one, _ISOTROPIC)
    # The power: what a band weighs is less certain than what the features of it do.
    shaped *= overall * max(size / overall, _TINY) ** _FREQUENCY_POWER
    values, vectors = torch.linalg.eigh(shaped)
    values = values.clamp_min(float(values.max()) * 1e-6)
    return vectors * values.sqrt() @ vectors.t(), vectors * values.rsqrt() @ vectors.t()


def _emphasis(power: torch.Tensor) -> torch.Tensor:
    """How much larger than on average a coefficient is to be taken, by the power of its gradients."""
    relative = power / power.mean().clamp_min(_TINY)
    return relative.clamp(_MOST_WEIGHT**-2, _MOST_WEIGHT**2) ** (_FREQUENCY_POWER / 2)


def _halves(coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the places; neighbours, who may be much alike, mostly stay together."""
    half = coefficients.shape[2] // 2
    if not half:
        return coefficients, coefficients
    return coefficients[:, :, :half], coefficients[:, :, half:]


def _magnitude(coefficients: torch.Tensor) -> torch.Tensor:
    return coefficients.abs().mean(2).double()


def _bits(magnitude: torch.Tensor, step: float) -> torch.Tensor:
    """About the entropy of a Laplace distribution of this mean magnitude, quantised."""
    return torch.log2(1 + 2 * math.e * magnitude / step)


def _finest(fitted: _Fitted) -> int:
    """The exponent, in quarters of an octave, of the step at which a coefficient takes FINEST_BITS."""
    magnitude = _magnitude(fitted.coefficients)

    def fewer(exponent: int) -> float:
        return -float(_bits(magnitude, 2 ** (exponent / LEVELS_PER_OCTAVE)).mean())

    least = math.ceil(LEVELS_PER_OCTAVE * math.log2(max(fitted.least, _TINY)))
    exponents = range(max(least, -_MOST_EXPONENT), _MOST_EXPONENT)
    return exponents[min(bisect.bisect_left(exponents, -FINEST_BITS, key=fewer), len(exponents) - 1)]


def _coefficients(fitted: _Fitted, values: torch.Tensor) -> torch.Tensor:
    """Those of other samples."""
    coefficients = fitted.geometry.forward(values)
    coefficients[0] -= fitted.mean[:, None] * math.sqrt(fitted.geometry.frequencies)
    if len(fitted.forward):
        ends = (*fitted.groups[1:], len(coefficients))
        for start, end, base in zip(fitted.groups, ends, fitted.forward, strict=True):
            coefficients[start:end] = base @ coefficients[start:end]
    return coefficients * fitted.scale[:, :, None]


def _cost(fitted: _Fitted, others: torch.Tensor, step: float) -> float:
    """Bits of an average sample whose coefficients are of other magnitudes than those that were learned."""
    learned, met = _magnitude(fitted.coefficients), _magnitude(others)
    excess = (met - learned) / (learned + step)
    return float((_bits(learned, step) + excess * math.log2(math.e)).sum()) * fitted.geometry.places


def _tables(fitted: _Fitted, dtype: DType) -> TransformTables:
    finest = _finest(fitted)
    size = 2 ** (finest / LEVELS_PER_OCTAVE)
    coefficients = fitted.coefficients / size
    level = _levels(coefficients)
    shift = np.maximum(0, np.ceil(np.log2(_class_magnitudes() / _UNSHIFTED))).astype(np.uint8)
    counts, offset = _statistics(coefficients, shift)
    probability = np.stack([_integers(row) for row in counts + _PRIOR_SYMBOLS * _laplace(shift)])
    expected_bits, bounds = _expectations(level, probability, shift, fitted.geometry.places)
    return TransformTables(
        geometry=fitted.geometry,
        dtype=dtype,
        finest=finest,
        mean=fitted.mean.numpy(),
        groups=fitted.groups,
        forward=fitted.forward.numpy(),
        inverse=fitted.inverse.numpy(),
        weight=(fitted.scale / size).numpy(),
        level=level,
        probability=probability,
        shift=shift,
        offset=offset,
        bounds=bounds,
        expected_bits=expected_bits,
    )


def _levels(coefficients: torch.Tensor) -> npt.NDArray[np.int16]:
    magnitude, places = _magnitude(coefficients), coefficients.shape[2]
    # What few places say is taken together with what the frequency and the feature are otherwise like.
    usual = magnitude.mean(1, keepdim=True) * magnitude.mean(0) / magnitude.mean().clamp_min(_TINY)
    magnitude = (places * magnitude + _PRIOR_PLACES * usual) / (places + _PRIOR_PLACES)
    octaves = torch.log2(magnitude.clamp_min(_TINY)).numpy()
    levels = np.rint(octaves * LEVELS_PER_OCTAVE) + ZERO_LEVEL
    clipped: npt.NDArray[np.int16] = np.clip(levels, -_MOST_EXPONENT, _MOST_EXPONENT).astype(np.int16)
    return clipped


def _class_magnitudes() -> npt.NDArray[np.float64]:
    """The mean magnitude, in steps, that each class is of."""
    magnitudes: npt.NDArray[np.float64] = 2.0 ** ((np.arange(CLASSES) - ZERO_LEVEL) / LEVELS_PER_OCTAVE)
    return magnitudes


def _statistics(
    coefficients: torch.Tensor, shift: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """How often each class met each magnitude, and by how much the true magnitudes differ from the decoded.

    Classes are assigned by one half of the places and their symbols counted in the other, so that the
    probabilities are of coefficients that are not quite what was expected of them.
    """
    width = LARGEST + 2
    counts = np.zeros(CLASSES * width)
    seen = np.zeros(CLASSES * 4)
    excess = np.zeros(CLASSES * 4)
    halves = _halves(coefficients)
    for learned, met in (halves, halves[::-1]):
        level = torch.from_numpy(_levels(learned).astype(np.int64))[:, :, None]
        every = max(1, met.numel() // _MOST_SYMBOLS)
        met = met[:, :, ::every]
        for step in range(0, STEPS, 2):
            chosen = (level - step).clamp(0, CLASSES - 1).expand(met.shape).reshape(-1)
            scaled = met.reshape(-1).abs() * 2 ** (-step / LEVELS_PER_OCTAVE)
            magnitudes = scaled.round()
            high = magnitudes.long() >> torch.from_numpy(shift.astype(np.int64))[chosen]
            cell = chosen * width + high.clamp(max=LARGEST + 1)
            counts += np.bincount(cell.numpy(), minlength=len(counts))
            kind = (chosen * 4 + magnitudes.clamp(max=3).long()).numpy()
            seen += np.bincount(kind, minlength=len(seen))
            excess += np.bincount(kind, weights=(scaled - magnitudes).numpy(), minlength=len(seen))
    offset = (excess / (seen + _PRIOR_OFFSETS)).reshape(CLASSES, 4)[:, 1:]
    offset[shift > 0] = 0
    return counts.reshape(CLASSES, width), np.clip(offset, -0.5, 0.5).astype(np.float32)


def _laplace(shift: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Each class's probabilities of a Laplace distribution of its magnitude."""
    beyond = np.concatenate([[0.0], np.arange(1, LARGEST + 2)])
    rows = []
    for magnitude, bits in zip(_class_magnitudes(), shift, strict=True):
        # The probability of at least each of the magnitudes that begin a cell.
        edges = beyond * 2.0**bits
        tail = np.where(edges > 0, np.exp(-np.maximum(edges - 0.5, 0) / magnitude), 1.0)
        rows.append(-np.diff(tail, append=0.0))
    return np.stack(rows)


def _integers(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.uint32]:
    """Probabilities of TOTAL, none of them zero."""
    room = TOTAL - len(weights)
    whole = np.floor(weights / weights.sum() * room).astype(np.int64) + 1
    whole[np.argmax(whole)] += TOTAL - whole.sum()
    integers: npt.NDArray[np.uint32] = whole.astype(np.uint32)
    return integers


def _expectations(
    level: npt.NDArray[np.int16],
    probability: npt.NDArray[np.uint32],
    shift: npt.NDArray[np.uint8],
    places: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Bits of a sample at every step, and where in the order of worth each part of them ends."""
    share = probability / TOTAL
    bits = -(share * np.log2(share)).sum(axis=1) + (1 - share[:, 0]) + shift
    levels = -np.sort(-level.reshape(-1).astype(np.int32))
    expected, bounds = [], []
    for step in range(STEPS):
        each = np.cumsum(bits[np.clip(levels - step, 0, CLASSES - 1)])
        expected.append(each[-1] * places)
        bounds.append(np.searchsorted(each, each[-1] * np.arange(1, PARTS) / PARTS))
    return np.array(expected, dtype=np.float32), np.array(bounds, dtype=np.int32)
