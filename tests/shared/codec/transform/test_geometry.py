from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec.transform import Geometry, geometries
from shared.errors import CodecError

SHAPES = st.lists(st.integers(1, 19), min_size=1, max_size=3).map(tuple)


@given(SHAPES, st.integers(1, 3), st.data())
@settings(max_examples=60, deadline=None)
def test_every_geometry_gives_back_what_it_took(
    shape: tuple[int, ...], batch: int, data: st.DataObject
) -> None:
    geometry = data.draw(st.sampled_from(list(geometries(shape))))
    tensor = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
    kept = tensor.clone()
    coefficients = geometry.forward(tensor)
    assert coefficients.shape == (geometry.frequencies, geometry.features, batch * geometry.places)
    assert torch.allclose(geometry.inverse(coefficients), tensor, atol=1e-5)
    coefficients.zero_()
    assert torch.equal(tensor, kept)


@pytest.mark.parametrize("shape", [(4, 14, 14), (3, 16, 21), (5, 9), (6,)])
def test_the_transform_is_orthonormal(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    whole = [
        each
        for each in geometries(shape)
        if all(s % b == 0 for s, b in zip(each.sides, each.block, strict=True))
    ]
    assert whole
    for geometry in whole:
        assert geometry.forward(tensor).square().sum() == pytest.approx(
            float(tensor.square().sum()), rel=1e-5
        )


def test_a_flat_map_has_nothing_but_the_lowest_frequency_even_beyond_its_edge() -> None:
    geometry = Geometry((2, 13, 11), 0, (8, 8))
    coefficients = geometry.forward(torch.full((1, 2, 13, 11), 3.0))
    assert torch.allclose(coefficients[0], torch.tensor(24.0))
    assert coefficients[1:].abs().max() < 1e-5


def test_frequencies_go_from_slow_to_fast() -> None:
    geometry = Geometry((1, 8, 8), 0, (8, 8))
    assert geometry.bands()[:6] == (0, 1, 1, 2, 2, 2)
    assert list(geometry.bands()) == sorted(geometry.bands())
    ramp = torch.linspace(-1, 1, 8).expand(1, 1, 8, 8)
    found = geometry.forward(ramp).abs().flatten()
    assert int(found.argmax()) in (1, 2)


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((40, 28, 28), {(7, 7)}),
        ((24, 56, 56), {(7, 7), (8, 8)}),
        ((80, 14, 14), {(7, 7), (14, 14)}),
        ((16, 113, 113), {(8, 8)}),
    ],
)
def test_maps_are_cut_where_it_comes_out_even(shape: tuple[int, ...], blocks: set[tuple[int, int]]) -> None:
    assert {each.block for each in geometries(shape) if each.feature == 0} == blocks


def test_tokens_may_stay_whole() -> None:
    found = {(each.feature, each.block) for each in geometries((128, 384))}
    assert (1, (1, 1)) in found
    assert (1, (1, 8)) in found


@pytest.mark.parametrize("sample_shape", [(), (2, 3, 4, 5), (0, 4)])
def test_other_shapes_have_no_geometry(sample_shape: tuple[int, ...]) -> None:
    assert list(geometries(sample_shape)) == []
    with pytest.raises(CodecError):
        Geometry(sample_shape, 0, (1, 1))


@pytest.mark.parametrize(("feature", "block"), [(3, (7, 7)), (0, (7, 15)), (0, (0, 7)), (-1, (7, 7))])
def test_a_geometry_that_does_not_fit_is_refused(feature: int, block: tuple[int, int]) -> None:
    with pytest.raises(CodecError):
        Geometry((4, 14, 14), feature, block)
