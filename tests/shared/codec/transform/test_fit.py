from __future__ import annotations

import pytest
import torch

from shared.codec.transform import Geometry, TransformTables, decode, encode, fit, is_fitted
from shared.errors import CodecError
from shared.tensor import DType
from tests.shared.codec.transform.samples import maps, spec_of, tables_of_maps


def bytes_and_error(tables: TransformTables, tensor: torch.Tensor, step: int) -> tuple[int, torch.Tensor]:
    coded = encode(tensor, tables, step)
    assert coded is not None
    return sum(map(len, coded)), decode(coded, tables, spec_of(tensor)).tensor - tensor


def test_the_bases_undo_each_other() -> None:
    tables = tables_of_maps()
    for forward, inverse in zip(tables.forward, tables.inverse, strict=True):
        assert torch.allclose(
            torch.from_numpy(forward @ inverse), torch.eye(tables.geometry.features), atol=1e-4
        )


def test_bytes_are_an_eighth_of_what_noise_of_the_same_size_takes() -> None:
    """Principal components and cosines find what is alike: at one error, noise takes many times the bytes."""
    noise = torch.randn(24, 8, 14, 14, generator=torch.Generator().manual_seed(3)) * maps(24).std()
    sizes = []
    for samples, fresh in ((maps(24), maps(1, seed=30)), (noise[1:], noise[:1])):
        tables = fit(samples)
        by_step = [bytes_and_error(tables, fresh, step) for step in range(0, 28, 2)]
        sizes.append(next(size for size, off in by_step if off.norm() / (fresh - fresh.mean()).norm() > 0.04))
    assert sizes[0] < sizes[1] / 8


def test_errors_go_where_they_do_no_harm() -> None:
    """With the same bytes, a feature on which the output depends a hundred times as much is kept better."""
    samples = torch.randn(64, 6, 8, 8, generator=torch.Generator().manual_seed(4))
    gradients = torch.randn(64, 6, 8, 8, generator=torch.Generator().manual_seed(5))
    gradients[:, 2] *= 100
    fresh = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(6))
    geometry = Geometry((6, 8, 8), 0, (8, 8))
    alike, weighed = fit(samples, geometry=geometry), fit(samples, gradients, geometry)
    plain, plain_off = bytes_and_error(alike, fresh, 12)
    size, off = min(
        (bytes_and_error(weighed, fresh, step) for step in range(28)), key=lambda each: abs(each[0] - plain)
    )
    assert size == pytest.approx(plain, rel=0.15)
    assert off[:, 2].norm() < 0.3 * plain_off[:, 2].norm()
    assert off[:, [0, 1, 3, 4, 5]].norm() > plain_off[:, [0, 1, 3, 4, 5]].norm()


def test_step_sizes_of_two_tensors_compare_in_the_output() -> None:
    """Gradients twice as large make the same absolute step half as coarse."""
    samples, gradients = maps(24), torch.randn(24, 8, 14, 14, generator=torch.Generator().manual_seed(7))
    once, twice = fit(samples, gradients), fit(samples, 2 * gradients)
    assert twice.finest - once.finest == 4
    assert bytes_and_error(once, maps(1, seed=31), 8)[0] == bytes_and_error(twice, maps(1, seed=31), 8)[0]


def test_the_geometry_that_takes_the_fewest_bits_is_found() -> None:
    generator = torch.Generator().manual_seed(8)
    tokens = torch.randn(24, 32, 12, generator=generator) * torch.logspace(0, -2, 12)
    unlike = torch.einsum("nlc,ck->nlk", tokens, torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q)
    assert fit(unlike).geometry == Geometry((32, 12), 1, (1, 1))
    steady = maps(24, 12, 32, 1).squeeze(3).transpose(1, 2).contiguous()
    # Over time, be it by cosines or by components.
    assert fit(steady).geometry != Geometry((32, 12), 1, (1, 1))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_few_samples_are_not_taken_for_all_there_is(count: int) -> None:
    """Fewer samples than features: what another sample has beyond them is coded, not lost."""
    generator = torch.Generator().manual_seed(9)
    samples = torch.randn(count, 64, generator=generator)
    fresh = torch.randn(1, 64, generator=generator)
    _, off = bytes_and_error(fit(samples), fresh, 0)
    assert off.norm() < 0.1 * fresh.norm()


def test_samples_that_are_all_alike_can_be_fitted() -> None:
    tables = fit(torch.full((4, 3, 8, 8), 2.0))
    size, off = bytes_and_error(tables, torch.full((1, 3, 8, 8), 2.0), 5)
    assert size <= 8
    assert off.abs().max() == 0


def test_many_features_get_no_basis() -> None:
    samples = torch.randn(12, 600, 2, 2, generator=torch.Generator().manual_seed(10))
    samples *= torch.logspace(0, -2, 600)[:, None, None]
    tables = fit(samples[1:], torch.rand(4, 600, 2, 2), Geometry((600, 2, 2), 0, (2, 2)))
    assert tables.forward.shape == (0, 600, 600)
    _, off = bytes_and_error(tables, samples[:1], 0)
    assert off.norm() < 0.1 * samples[0].norm()


def test_what_cannot_be_fitted_is_said() -> None:
    assert is_fitted(DType.UINT8, (4, 3, 8, 8))
    assert not is_fitted(DType.INT64, (4, 12))
    assert not is_fitted(DType.FLOAT32, (4,))
    assert not is_fitted(DType.FLOAT32, (4, 2, 2, 2, 2))
    good = maps(4)
    bad = good.clone()
    bad[1, 1, 1, 1] = torch.nan
    for samples, gradients in (
        (good[:1], None),
        (good.long(), None),
        (bad, None),
        (good, bad),
        (good, good[:, :2]),
    ):
        with pytest.raises(CodecError):
            fit(samples, gradients)
