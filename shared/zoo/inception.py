"""GoogLeNet (Szegedy et al., CVPR 2015): a graph whose branches cross most cuts."""

from __future__ import annotations

import torch
from torch import nn

from shared.zoo import Network
from shared.zoo.image_input import Normalise, synthetic_photo
from shared.zoo.initialise import make

__all__ = ["GoogLeNet", "Inception", "googlenet"]


class Inception(nn.Module):
    """Four branches side by side: 1 x 1; 1 x 1 then 3 x 3; 1 x 1 then 5 x 5; pool then 1 x 1."""

    def __init__(
        self, channels: int, one: int, three_in: int, three: int, five_in: int, five: int, pooled: int
    ) -> None:
        super().__init__()
        self.one = _conv_norm_relu(channels, one, 1)
        self.three = nn.Sequential(
            _conv_norm_relu(channels, three_in, 1), _conv_norm_relu(three_in, three, 3)
        )
        self.five = nn.Sequential(_conv_norm_relu(channels, five_in, 1), _conv_norm_relu(five_in, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), _conv_norm_relu(channels, pooled, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], dim=1)


def _conv_norm_relu(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class GoogLeNet(nn.Module):
    """224 x 224 RGB in, 1000 logits out; 7.0 M parameters.

    Batch norm in place of the original's local response norm, as it is trained today; without the two
    auxiliary classifiers, which serve training alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.stem = nn.Sequential(
            _conv_norm_relu(3, 64, 7, stride=2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            _conv_norm_relu(64, 64, 1),
            _conv_norm_relu(64, 192, 3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        self.inception3 = nn.Sequential(
            Inception(192, 64, 96, 128, 16, 32, 32),
            Inception(256, 128, 128, 192, 32, 96, 64),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        self.inception4 = nn.Sequential(
            Inception(480, 192, 96, 208, 16, 48, 64),
            Inception(512, 160, 112, 224, 24, 64, 64),
            Inception(512, 128, 128, 256, 24, 64, 64),
            Inception(512, 112, 144, 288, 32, 64, 64),
            Inception(528, 256, 160, 320, 32, 128, 128),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        self.inception5 = nn.Sequential(
            Inception(832, 256, 160, 320, 32, 128, 128), Inception(832, 384, 192, 384, 48, 128, 128)
        )
        self.classifier = nn.Linear(1024, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.inception4(self.inception3(self.stem(self.normalise(image))))
        x = nn.functional.adaptive_avg_pool2d(self.inception5(x), 1)
        logits: torch.Tensor = self.classifier(x.flatten(1))
        return logits


def googlenet() -> Network:
    module = make(GoogLeNet, seed=12)
    return Network("googlenet", module, (synthetic_photo(3, 224, 224, seed=12),), input_form="image")
