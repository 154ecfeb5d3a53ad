from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec.transform.coder import MAX_MAGNITUDE, Run, read_runs, write_runs
from shared.codec.transform.models import ClassModel, class_models
from shared.codec.transform.tables import CLASSES, LARGEST, TOTAL, ZERO_LEVEL
from shared.errors import CodecError
from tests.shared.codec.transform.samples import tables_of_maps

MODELS = class_models(tables_of_maps())
RUNS = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(1, 300)), min_size=1, max_size=6)


GOLDEN = [1375854066, 2108499872, 133611298, 428]


def golden_models() -> tuple[ClassModel, ClassModel]:
    """One in which most symbols are zero and one in which nearly all are, of fixed integers."""
    probability = np.ones((CLASSES, LARGEST + 2), dtype=np.uint32)
    for row, unit in enumerate((256_000, 64_000)):
        probability[row, 1:] += (unit >> np.arange(1, LARGEST + 2)).astype(np.uint32)
    probability[:, 0] = TOTAL - probability[:, 1:].sum(axis=1)
    shift = np.zeros(CLASSES, dtype=np.uint8)
    tables = dataclasses.replace(tables_of_maps(), probability=probability, shift=shift)
    models = class_models(tables)
    return models[0], models[1]


def runs_of(pairs: list[tuple[int, int]]) -> list[Run]:
    return [Run(MODELS[index], size) for index, size in pairs]


@given(RUNS, st.data())
@settings(max_examples=150, deadline=None)
def test_any_symbols_come_back_under_any_models(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    runs = runs_of(pairs)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    largest = data.draw(st.sampled_from([0, 1, 3, LARGEST, LARGEST + 1, 500, MAX_MAGNITUDE]))
    share = data.draw(st.sampled_from([0.0, 0.01, 0.3, 1.0]))
    size = sum(run.size for run in runs)
    symbols = rng.integers(-largest, largest + 1, size, dtype=np.int32) * (rng.random(size) < share)
    symbols = symbols.astype(np.int32)
    words = write_runs(symbols, runs)
    assert np.array_equal(read_runs(words, runs), symbols)


@given(RUNS, st.binary(max_size=400).map(lambda data: data[: len(data) // 4 * 4]))
@settings(max_examples=200, deadline=None)
def test_any_words_are_refused_or_give_symbols_of_the_size_agreed(
    pairs: list[tuple[int, int]], data: bytes
) -> None:
    runs = runs_of(pairs)
    words = np.frombuffer(data, dtype=np.uint32)
    try:
        symbols = read_runs(words, runs)
    except CodecError:
        return
    assert symbols.shape == (sum(run.size for run in runs),)
    assert np.abs(symbols).max() <= MAX_MAGNITUDE
    # Whatever is read is what a writer can say.
    assert np.array_equal(read_runs(write_runs(symbols, runs), runs), symbols)


def test_words_that_are_left_over_are_refused() -> None:
    runs = runs_of([(ZERO_LEVEL, 500)])
    symbols = np.random.default_rng(0).integers(-2, 3, 500, dtype=np.int32)
    words = write_runs(symbols, runs)
    with pytest.raises(CodecError, match="more than its symbols"):
        read_runs(np.concatenate([words[:1], words]), runs)
    with pytest.raises(CodecError, match="no coder has written"):
        read_runs(np.concatenate([words, np.zeros(1, np.uint32)]), runs)
    with pytest.raises(CodecError):
        read_runs(words[1:], runs_of([(ZERO_LEVEL, 400)]))


@pytest.mark.parametrize("index", [4, 10, 14, ZERO_LEVEL, 26, 36, 50])
def test_the_words_are_as_few_as_the_probabilities_allow(index: int) -> None:
    """Of symbols drawn from a class's own probabilities, dense or sparse."""
    tables = tables_of_maps()
    weights = tables.probability[index][: LARGEST + 1] / TOTAL
    shift = int(tables.shift[index])
    rng = np.random.default_rng(index)
    size = 20_000
    high = rng.choice(LARGEST + 1, size=size, p=weights / weights.sum())
    magnitudes = (high << shift) + rng.integers(0, 2**shift, size)
    symbols = (magnitudes * rng.choice([-1, 1], size)).astype(np.int32)
    ideal = -np.log2(weights[high]).sum() + size * shift + np.count_nonzero(magnitudes)
    words = write_runs(symbols, [Run(MODELS[index], size)])
    assert 32 * len(words) <= 1.015 * ideal + 80


def test_a_run_of_zeros_costs_next_to_nothing() -> None:
    symbols = np.zeros(2**20, dtype=np.int32)
    assert len(write_runs(symbols, [Run(MODELS[0], len(symbols))])) <= 1


def test_the_words_never_change() -> None:
    """Both sides may be of different versions and machines: these bits are part of the format."""
    dense, sparse = golden_models()
    assert (dense.gap is None, sparse.gap is None) == (True, False)
    runs = [Run(dense, 6), Run(sparse, 40)]
    symbols = np.zeros(46, dtype=np.int32)
    symbols[[0, 1, 3, 5, 6, 30, 45]] = [3, -1, 1, -70, 1, -2, 1]
    words = write_runs(symbols, runs)
    assert words.tolist() == GOLDEN
    assert np.array_equal(read_runs(np.array(GOLDEN, np.uint32), runs), symbols)
