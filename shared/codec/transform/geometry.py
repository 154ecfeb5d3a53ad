"""How a tensor becomes blocks of frequencies and back: which dimension holds features, and which blocks of
which other dimensions a cosine transform turns into frequencies.

Coefficients are laid out as frequencies x features x places.  A place is one block of one sample, so that
samples of a batch are independent of one another.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from shared.errors import CodecError
from shared.tensor import Shape

__all__ = ["MAX_BLOCK", "Geometry", "geometries"]

MAX_BLOCK = 16
"""The longest side of a block; a dimension no longer than this may be one block."""

_SIDES = (8, 7)


@dataclass(frozen=True, slots=True)
class Geometry:
    """``sample_shape`` is the tensor's shape without its batch, ``feature`` an index into it, and ``block``
    the two sides of a block over the other dimensions, the first of which is 1 where there is only one.

    A dimension that the block's side does not divide is continued with its last element, which costs next
    to nothing in the frequencies; what was added is cut off after decoding.
    """

    sample_shape: Shape
    feature: int
    block: tuple[int, int]

    def __post_init__(self) -> None:
        rank = len(self.sample_shape)
        if not (1 <= rank <= 3 and 0 <= self.feature < rank and min(self.sample_shape) >= 1):
            raise CodecError(
                f"no transform of samples of shape {self.sample_shape} by dimension {self.feature}"
            )
        if not all(
            1 <= side <= min(MAX_BLOCK, size) for side, size in zip(self.block, self.sides, strict=True)
        ):
            raise CodecError(f"no blocks of {self.block} in {self.sides}")

    @property
    def features(self) -> int:
        return self.sample_shape[self.feature]

    @property
    def frequencies(self) -> int:
        return self.block[0] * self.block[1]

    @property
    def sides(self) -> tuple[int, int]:
        """The dimensions besides the features, with 1 for those that are not there."""
        others = [size for dim, size in enumerate(self.sample_shape) if dim != self.feature]
        first, second = [1] * (2 - len(others)) + others
        return first, second

    @property
    def blocks(self) -> tuple[int, int]:
        """How many there are along each side, the incomplete ones included."""
        (height, width), (tall, wide) = self.sides, self.block
        return -(-height // tall), -(-width // wide)

    @property
    def places(self) -> int:
        """In one sample."""
        return math.prod(self.blocks)

    def bands(self) -> tuple[int, ...]:
        """How high each frequency is, in the order of the coefficients, which is by this."""
        return tuple(across + down for down, across in _by_band(self.block))

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Coefficients of a float32 batch of samples: a new tensor, frequencies x features x places."""
        (tall, wide), (rows, columns) = self.block, self.blocks
        height, width = self.sides
        batch = tensor.shape[0]
        maps = tensor.movedim(self.feature + 1, 0).reshape(self.features, batch, height, width)
        below, right = rows * tall - height, columns * wide - width
        if below or right:
            maps = torch.nn.functional.pad(maps, (0, right, 0, below), mode="replicate")
        split = maps.view(self.features, batch, rows, tall, columns, wide).permute(3, 5, 0, 1, 2, 4)
        blocks = split.reshape(self.frequencies, -1)
        # Without a product there may have been no copy yet.
        blocks = _cosines(self.block) @ blocks if self.frequencies > 1 else blocks.clone()
        return blocks.view(self.frequencies, self.features, batch * rows * columns)

    def inverse(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The samples of such coefficients, as a tensor of any strides."""
        (tall, wide), (rows, columns) = self.block, self.blocks
        height, width = self.sides
        blocks = coefficients.reshape(self.frequencies, -1)
        if self.frequencies > 1:
            blocks = _cosines(self.block).t() @ blocks
        split = blocks.view(tall, wide, self.features, -1, rows, columns).permute(2, 3, 4, 0, 5, 1)
        maps = split.reshape(self.features, -1, rows * tall, columns * wide)[:, :, :height, :width]
        others = [size for dim, size in enumerate(self.sample_shape) if dim != self.feature]
        return maps.reshape(self.features, -1, *others).movedim(0, self.feature + 1)


def geometries(sample_shape: Shape) -> Iterator[Geometry]:
    """What may suit samples of this shape; which of them does is for :func:`fit` to measure.

    Features are the first dimension (channels) or the last (tokens); blocks are whole dimensions, 8 or 7 a
    side where that divides, 8 where nothing does, and single elements where there is one dimension only.
    """
    rank = len(sample_shape)
    if not 1 <= rank <= 3 or min(sample_shape) < 1:
        return
    for feature in dict.fromkeys((0, rank - 1)):
        others = [size for dim, size in enumerate(sample_shape) if dim != feature]
        height, width = [1] * (2 - len(others)) + others
        pairs = {(tall, wide) for tall in _sides(height) for wide in _sides(width)}
        if len(others) == 1:
            pairs.add((1, 1))
        # Of two sides the blocks should be alike: both whole, both of eight, both of seven.
        least = min(abs(tall - wide) for tall, wide in pairs) if len(others) == 2 else 0
        for pair in sorted(pairs):
            if len(others) < 2 or abs(pair[0] - pair[1]) == least or pair == (min(height, 8), min(width, 8)):
                yield Geometry(sample_shape, feature, pair)


def _sides(size: int) -> list[int]:
    found = [side for side in _SIDES if size % side == 0]
    if size <= MAX_BLOCK:
        found.append(size)
    return found or [8]


@functools.cache
def _by_band(block: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Pairs of frequencies from the slowest to the fastest, as (down, across)."""
    tall, wide = block
    pairs = [(down, across) for down in range(tall) for across in range(wide)]
    return tuple(sorted(pairs, key=lambda pair: (pair[0] + pair[1], pair)))


@functools.cache
def _cosines(block: tuple[int, int]) -> torch.Tensor:
    """The orthonormal cosine transform (DCT-II) of a block as one matrix: frequencies x elements."""
    tall, wide = block
    down, across = _cosines_of(tall), _cosines_of(wide)
    whole = torch.stack([torch.outer(down[v], across[u]).flatten() for v, u in _by_band(block)])
    return whole.to(torch.float32)


def _cosines_of(size: int) -> torch.Tensor:
    places = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * places[None] + 1) * places[:, None] / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
