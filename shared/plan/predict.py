"""Predict a unit's time on a machine that has never run its network.

As in the paper (Kang et al., ASPLOS 2017, section 4.1) there is one regression for each type of unit,
fitted once for a machine from a sweep that knows nothing of the application.  Two things differ: the
coefficients cannot be negative (a larger unit is never predicted to be faster, no time is negative), and
the error minimised is relative, so that units of 20 us and of 20 ms count alike.  A prediction is a prior:
a measured profile replaces it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.graph.ir import Graph
from shared.plan.cache import write_whole
from shared.plan.features import UnitFeatures, unit_features
from shared.plan.profile import this_machine

__all__ = [
    "REGRESSORS",
    "Fit",
    "Predictor",
    "PredictorKey",
    "Regression",
    "Sample",
    "as_regression",
    "design",
    "fit_predictor",
    "fit_relative",
    "least_squares",
    "load_predictor",
    "nonnegative_least_squares",
    "predict_profile",
    "save_predictor",
]

_FORMAT = 1

REGRESSORS = ("flops", "bytes_in", "bytes_out", "weight_bytes", "constant")

MIN_SAMPLES = 8
"""A type seen less often is predicted by the regression of its family, and that by the one over all units."""

Array = NDArray[np.float64]


class Sample(NamedTuple):
    """A unit and the time it was measured to take, in ms."""

    features: UnitFeatures
    ms: float


Coefficient = Annotated[float, msgspec.Meta(ge=0)]


class Regression(msgspec.Struct, frozen=True):
    """``coefficients`` are ms per FLOP, per byte (three times), and ms, in the order of REGRESSORS.

    ``median_error`` is the median of ``|predicted - measured| / measured`` over the samples of the fit.
    """

    coefficients: tuple[Coefficient, Coefficient, Coefficient, Coefficient, Coefficient]
    samples: int
    median_error: float

    def ms(self, features: UnitFeatures) -> float:
        return float(np.dot(_row(features), self.coefficients))


class PredictorKey(msgspec.Struct, frozen=True):
    """The machine, device, threads and torch that the sweep ran on; a predictor serves no other."""

    device: str
    threads: int
    torch_version: str
    machine: str = msgspec.field(default_factory=this_machine)
    mode: str = "fused"

    @property
    def file_name(self) -> str:
        text = json.dumps([_FORMAT, *msgspec.structs.astuple(self)])
        return f"predictor-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


Fit = Callable[[Sequence[Sample]], Regression]


class Predictor(msgspec.Struct, frozen=True):
    """Regressions by type, by family and over everything, and what they were fitted on."""

    key: PredictorKey
    by_type: dict[str, Regression]
    by_family: dict[str, Regression]
    overall: Regression
    format: int = _FORMAT

    def regression(self, features: UnitFeatures) -> Regression:
        """The most specific one that saw enough samples."""
        return self.by_type.get(features.type) or self.by_family.get(features.family) or self.overall

    def ms(self, features: UnitFeatures) -> float:
        """The predicted time of a unit, never negative."""
        return self.regression(features).ms(features)

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes) -> Predictor:
        """Raises ValueError when the text is not a predictor of this format."""
        try:
            predictor = msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a predictor: {error}") from error
        if predictor.format != _FORMAT:
            raise ValueError(f"not a predictor: format {predictor.format} instead of {_FORMAT}")
        return predictor


def predict_profile(graph: Graph, predictor: Predictor, batch: int = 1) -> tuple[float, ...]:
    """The predicted ms of every unit of ``graph``, which need never have run."""
    return tuple(predictor.ms(features) for features in unit_features(graph, batch))


def fit_predictor(samples: Sequence[Sample], key: PredictorKey, fit: Fit | None = None) -> Predictor:
    """Fit every type and family with at least MIN_SAMPLES samples, and one regression over all.

    Samples of 0 ms are left out: their relative error has no meaning.  ``fit`` is for comparisons; left
    out, it is :func:`fit_relative`.  Raises ValueError when no sample is left.
    """
    fit = fit or fit_relative
    usable = [sample for sample in samples if sample.ms > 0]
    if not usable:
        raise ValueError("no unit was measured: there is nothing to fit")
    return Predictor(
        key=key,
        by_type=_fit_groups(usable, [sample.features.type for sample in usable], fit),
        by_family=_fit_groups(usable, [sample.features.family for sample in usable], fit),
        overall=fit(usable),
    )


def _fit_groups(samples: Sequence[Sample], names: Sequence[str], fit: Fit) -> dict[str, Regression]:
    groups: dict[str, list[Sample]] = {}
    for name, sample in zip(names, samples, strict=True):
        groups.setdefault(name, []).append(sample)
    return {name: fit(group) for name, group in sorted(groups.items()) if len(group) >= MIN_SAMPLES}


def fit_relative(samples: Sequence[Sample]) -> Regression:
    """Non-negative coefficients that minimise the squared relative error.  All times must be positive."""
    matrix, times = design(samples)
    # Dividing each equation by its time makes the squared error that is minimised the relative one.
    return as_regression(samples, nonnegative_least_squares(matrix / times[:, None], np.ones(len(times))))


def as_regression(samples: Sequence[Sample], coefficients: Array) -> Regression:
    """A regression of these coefficients, and its error on the samples."""
    matrix, times = design(samples)
    errors = np.abs(matrix @ coefficients - times) / times
    flops, bytes_in, bytes_out, weight_bytes, constant = coefficients.tolist()
    return Regression(
        (flops, bytes_in, bytes_out, weight_bytes, constant), len(samples), float(np.median(errors))
    )


def _row(features: UnitFeatures) -> tuple[float, ...]:
    return (features.flops, features.bytes_in, features.bytes_out, features.weight_bytes, 1.0)


def design(samples: Iterable[Sample]) -> tuple[Array, Array]:
    """The matrix of regressors and the vector of times."""
    rows = [(*_row(features), ms) for features, ms in samples]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(REGRESSORS) + 1)
    return table[:, :-1], table[:, -1]


def least_squares(matrix: Array, target: Array) -> Array:
    """Plain least squares, in columns of like scale so that FLOPs and a constant can be solved together."""
    scale = np.maximum(np.linalg.norm(matrix, axis=0), np.finfo(np.float64).tiny)
    return np.asarray(np.linalg.lstsq(matrix / scale, target, rcond=None)[0] / scale)


def nonnegative_least_squares(matrix: Array, target: Array) -> Array:
    """The exact minimum of ``|matrix x - target|`` over ``x >= 0``.

    The minimum is the unconstrained one over those columns that are not 0 in it (Lawson & Hanson, Solving
    Least Squares Problems, 1974, chapter 23), so trying every set of columns finds it: 32 small solves for
    five columns, and nothing that can fail to converge.
    """
    columns = matrix.shape[1]
    best = np.zeros(columns)
    least = float(np.linalg.norm(target))
    for count in range(1, columns + 1):
        for chosen in combinations(range(columns), count):
            candidate = np.zeros(columns)
            candidate[list(chosen)] = least_squares(matrix[:, chosen], target)
            residual = float(np.linalg.norm(matrix @ candidate - target))
            if residual < least and (candidate >= 0).all():
                best, least = candidate, residual
    return best


def load_predictor(cache_dir: Path, key: PredictorKey) -> tuple[Predictor | None, str | None]:
    """The predictor kept for this key, and a warning to show when a file is there but of no use.

    ``(None, None)`` when none is kept.  Never raises for what the cache holds.
    """
    path = cache_dir / key.file_name
    try:
        predictor = Predictor.from_json(path.read_bytes())
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as error:
        return None, f"ignored the predictor in {path}, run `edge-agent calibrate` again: {error}"
    if predictor.key != key:
        return None, f"ignored the predictor in {path}: it is of {predictor.key}"
    return predictor, None


def save_predictor(cache_dir: Path, predictor: Predictor) -> Path:
    """Keep a predictor; a reader sees the old file or the new one, never a part.

    Raises OSError when the directory cannot be written.
    """
    path = cache_dir / predictor.key.file_name
    write_whole(path, predictor.to_json())
    return path
