"""Tensors with neighbours and features that are alike, as those of real networks are."""

from __future__ import annotations

import functools

import torch

from shared.codec.transform import TransformTables, fit
from shared.tensor import DType, Shape, TensorSpec

__all__ = ["maps", "spec_of", "tables_of_maps"]


def maps(count: int, features: int = 8, height: int = 14, width: int = 14, seed: int = 0) -> torch.Tensor:
    """Smooth maps whose features are mixtures of a few, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, features, max(height // 4, 1), max(width // 4, 1), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    # The same for every seed: other samples of the same network.
    mixture = torch.randn(features, features, generator=torch.Generator().manual_seed(99))
    mixture *= torch.logspace(0, -1.5, features)
    noise = torch.randn(smooth.shape, generator=generator)
    return torch.einsum("kc,nchw->nkhw", mixture, smooth) + 0.02 * noise + 1.0


@functools.cache
def tables_of_maps() -> TransformTables:
    return fit(maps(24))


def spec_of(tensor: torch.Tensor, order: Shape | None = None) -> TensorSpec:
    shape = tuple(tensor.shape)
    return TensorSpec("t", DType.from_label(str(tensor.dtype)), shape, order or tuple(range(len(shape))))
