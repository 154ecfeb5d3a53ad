"""Regressions: they recover what made the data, never go negative, and survive being kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from shared.plan.features import UnitFeatures
from shared.plan.predict import (
    MIN_SAMPLES,
    Predictor,
    PredictorKey,
    Regression,
    Sample,
    design,
    fit_predictor,
    least_squares,
    load_predictor,
    nonnegative_least_squares,
    save_predictor,
)

KEY = PredictorKey(device="cpu", threads=1, torch_version="2.13.0", machine="here/x86_64/2")


def unit(
    kind: str = "conv2d",
    flops: float = 1e8,
    bytes_in: int = 100_000,
    bytes_out: int = 200_000,
    weight_bytes: int = 50_000,
    type: str | None = None,
) -> UnitFeatures:
    family = "convolution" if kind == "conv2d" else "elementwise"
    return UnitFeatures(0, kind, type or kind, family, flops, bytes_in, bytes_out, weight_bytes, 1, ())


def sweep(seed: int, kind: str = "conv2d", count: int = 60) -> list[UnitFeatures]:
    random = np.random.default_rng(seed)
    return [
        unit(
            kind,
            float(10 ** random.uniform(5, 9)),
            int(10 ** random.uniform(3, 7)),
            int(10 ** random.uniform(3, 7)),
            int(10 ** random.uniform(2, 7)),
        )
        for _ in range(count)
    ]


def timed(units: list[UnitFeatures], coefficients: tuple[float, ...], noise: float = 0.0) -> list[Sample]:
    random = np.random.default_rng(7)
    return [
        Sample(
            features,
            float(
                np.dot(
                    (features.flops, features.bytes_in, features.bytes_out, features.weight_bytes, 1.0),
                    coefficients,
                )
            )
            * float(np.exp(random.normal(0, noise))),
        )
        for features in units
    ]


TRUTH = (2e-8, 1e-7, 3e-7, 1e-6, 0.01)


@given(st.integers(0, 10_000), st.tuples(*[st.floats(1e-9, 1e-5)] * 4, st.floats(1e-3, 1.0)))
@settings(max_examples=30, deadline=None)
def test_the_fit_recovers_the_line_that_made_the_data(seed: int, truth: tuple[float, ...]) -> None:
    samples = timed(sweep(seed), truth)
    predictor = fit_predictor(samples, KEY)
    for features, ms in samples:
        assert predictor.ms(features) == pytest.approx(ms, rel=1e-6)
    assert predictor.by_type["conv2d"].median_error < 1e-6


@given(st.integers(0, 10_000), st.floats(0.1, 1.5))
@settings(max_examples=30, deadline=None)
def test_no_coefficient_and_no_prediction_is_negative(seed: int, noise: float) -> None:
    predictor = fit_predictor(timed(sweep(seed, count=15), TRUTH, noise), KEY)
    assert min(predictor.overall.coefficients) >= 0
    assert min(predictor.ms(features) for features in sweep(seed + 1)) >= 0


def test_plain_least_squares_goes_negative_where_ours_does_not() -> None:
    """Times from a larger constant for small units: a straight line tilts below 0 at the origin."""
    matrix = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    target = np.array([0.5, 2.0, 5.0])
    assert least_squares(matrix, target)[1] == pytest.approx(-2.0)
    assert nonnegative_least_squares(matrix, target) == pytest.approx([19.5 / 14, 0.0])


@given(st.integers(0, 100_000), st.integers(1, 5), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_the_non_negative_solution_is_as_good_as_scipys(seed: int, columns: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(rows, columns))
    target = random.normal(size=rows)
    ours = nonnegative_least_squares(matrix, target)
    assert (ours >= 0).all()
    assert np.linalg.norm(matrix @ ours - target) == pytest.approx(nnls(matrix, target)[1], abs=1e-9)


def test_a_column_of_zeros_does_no_harm() -> None:
    matrix = np.array([[1.0, 0.0], [2.0, 0.0]])
    assert nonnegative_least_squares(matrix, np.array([2.0, 4.0])) == pytest.approx([2.0, 0.0])


def test_small_and_large_units_count_alike() -> None:
    """Half the units follow one line at 20 us, the others twice that line at 20 ms: the fit lies between,
    where plain least squares sees the large ones only."""
    small = [unit(flops=1e6, bytes_in=0, bytes_out=0, weight_bytes=0)] * 10
    large = [unit(flops=1e9, bytes_in=0, bytes_out=0, weight_bytes=0)] * 10
    samples = timed(small, (2e-8, 0, 0, 0, 0)) + timed(large, (4e-8, 0, 0, 0, 0))
    matrix, times = design(samples)
    plain = matrix @ least_squares(matrix, times)
    assert plain[-1] == pytest.approx(times[-1])
    ours = fit_predictor(samples, KEY)
    both = [abs(ours.ms(sample.features) - sample.ms) / sample.ms for sample in (samples[0], samples[-1])]
    assert max(both) < 0.5


def test_a_type_seen_too_rarely_borrows_from_its_family_and_then_from_all() -> None:
    conv = (2e-8, 0.0, 0.0, 0.0, 0.1)
    relu = (0.0, 1e-6, 0.0, 0.0, 0.5)
    units = sweep(1)
    depthwise = [_with_type(features, "conv2d depthwise") for features in units[:3]]
    samples = timed(units, conv) + timed(depthwise, conv) + timed(sweep(2, "relu"), relu)
    predictor = fit_predictor(samples, KEY)
    assert set(predictor.by_type) == {"conv2d", "relu"}
    rare = _with_type(unit(flops=1e9), "conv2d depthwise")
    assert predictor.regression(rare) == predictor.by_family["convolution"]
    assert predictor.ms(rare) == pytest.approx(20.1, rel=1e-6)
    assert predictor.regression(_of_family(unit(), "recurrent")) == predictor.overall
    assert len(units[:3]) < MIN_SAMPLES


def _with_type(features: UnitFeatures, type: str) -> UnitFeatures:
    return dataclasses.replace(features, type=type)


def _of_family(features: UnitFeatures, family: str) -> UnitFeatures:
    return dataclasses.replace(features, type="other", family=family)


def test_noise_of_a_fifth_leaves_an_error_of_about_a_fifth() -> None:
    samples = timed(sweep(3, count=300), TRUTH, noise=0.2)
    assert 0.05 < fit_predictor(samples, KEY).by_type["conv2d"].median_error < 0.25


def test_units_that_took_no_time_are_left_out() -> None:
    samples = timed(sweep(4), TRUTH)
    with_zero = [*samples, Sample(unit(flops=1e12), 0.0)]
    assert fit_predictor(with_zero, KEY) == fit_predictor(samples, KEY)
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_predictor([Sample(unit(), 0.0)], KEY)


def test_a_predictor_is_kept_for_its_machine_and_no_other(tmp_path: Path) -> None:
    predictor = fit_predictor(timed(sweep(5), TRUTH), KEY)
    assert load_predictor(tmp_path, KEY) == (None, None)
    path = save_predictor(tmp_path / "new", predictor)
    assert load_predictor(path.parent, KEY) == (predictor, None)
    other = msgspec.structs.replace(KEY, threads=2)
    assert load_predictor(path.parent, other) == (None, None)
    path.rename(path.with_name(other.file_name))
    kept, warning = load_predictor(path.parent, other)
    assert kept is None
    assert warning is not None
    assert "threads=1" in warning


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"key": 1}',
        msgspec.json.encode({"format": 1, "key": KEY, "by_type": {}, "by_family": {}}),
        msgspec.json.encode(
            {"key": KEY, "by_type": {}, "by_family": {}, "overall": Regression((0, 0, 0, 0, -1.0), 9, 0.1)}
        ),
        msgspec.json.encode(Predictor(KEY, {}, {}, Regression((0.0, 0.0, 0.0, 0.0, 1.0), 9, 0.1), format=99)),
    ],
)
def test_a_file_that_is_no_predictor_is_a_warning(tmp_path: Path, text: bytes) -> None:
    (tmp_path / KEY.file_name).write_bytes(text)
    kept, warning = load_predictor(tmp_path, KEY)
    assert kept is None
    assert warning is not None
    assert "not a predictor" in warning
    with pytest.raises(ValueError, match="not a predictor"):
        Predictor.from_json(text)


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save_predictor(tmp_path / "file", fit_predictor(timed(sweep(5), TRUTH), KEY))
