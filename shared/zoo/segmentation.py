"""U-Net (Ronneberger et al., MICCAI 2015): its long skips make every cut in the middle an expensive one."""

from __future__ import annotations

import torch
from torch import nn

from shared.zoo import Network
from shared.zoo.image_input import Normalise, synthetic_photo
from shared.zoo.initialise import make

__all__ = ["UNet", "unet"]


def _double_conv(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """256 x 256 RGB in, one logit per pixel out, batch x 1 x 256 x 256; 7.8 M parameters.

    Half the original's widths, padded convolutions and batch norm, as in most later uses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise()
        widths = (32, 64, 128, 256)
        self.down = nn.ModuleList(
            _double_conv(channels, width) for channels, width in zip((3, *widths), widths, strict=False)
        )
        self.bottom = _double_conv(256, 512)
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths)
        )
        self.up = nn.ModuleList(_double_conv(2 * width, width) for width in reversed(widths))
        self.mask = nn.Conv2d(32, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.normalise(image)
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.bottom(x)
        for enlarge, block, skip in zip(self.enlarge, self.up, reversed(skips), strict=True):
            x = block(torch.cat([skip, enlarge(x)], dim=1))
        logits: torch.Tensor = self.mask(x)
        return logits


def unet() -> Network:
    return Network("unet", make(UNet, seed=15), (synthetic_photo(3, 256, 256, seed=15),), input_form="image")
