"""The first layer of every image network, and images to feed it."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Normalise", "synthetic_photo"]

# Over RGB values from 0 to 255.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Normalise(nn.Module):
    """uint8 image in, float32 of mean 0 and variance 1 out: part of the graph, so that the image as
    the application holds it is what cut 0 ships."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
    ) -> None:
        super().__init__()
        self._values = (mean, std)
        self.register_buffer("mean", torch.empty(len(mean), 1, 1))
        self.register_buffer("std", torch.empty(len(std), 1, 1))
        self.reset()

    def reset(self) -> None:
        """Write the constants, again after the buffers were moved or emptied."""
        for buffer, values in zip((self.mean, self.std), self._values, strict=True):
            buffer.copy_(torch.tensor(values, device=buffer.device).view_as(buffer))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image.float() - self.mean) / self.std


def synthetic_photo(channels: int, height: int, width: int, seed: int) -> torch.Tensor:
    """A uint8 image, 1 x channels x height x width, with the statistics of a photograph.

    Octaves of smooth noise whose amplitude falls with frequency (natural images have a 1/f spectrum;
    Field, JOSA A 1987), mostly shared between channels.  White noise would be unlike any camera, and
    would flatter no codec and no network.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, channels, height, width)
    for octave in range(6):
        side = 2 << octave
        shared = torch.rand(1, 1, side, side, generator=generator)
        own = torch.rand(1, channels, side, side, generator=generator)
        layer = nn.functional.interpolate(
            0.8 * shared + 0.4 * own - 0.6, (height, width), mode="bicubic", align_corners=False
        )
        image += layer / 1.5**octave
    image = (image - image.mean()) / image.std()
    return (127 + 58 * image).round().clamp(0, 255).to(torch.uint8)
