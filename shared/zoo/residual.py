"""ResNet-50 (He et al., CVPR 2016), with the stride in the 3 x 3 convolution as most later code has it."""

from __future__ import annotations

import torch
from torch import nn

from shared.zoo import Network
from shared.zoo.image_input import Normalise, synthetic_photo
from shared.zoo.initialise import make, scale_norms

__all__ = ["Bottleneck", "ResNet50", "resnet50"]


class Bottleneck(nn.Module):
    """1 x 1 down to ``width``, 3 x 3, 1 x 1 up to four times ``width``, plus the input."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = torch.relu(self.norm1(self.conv1(x)))
        branch = torch.relu(self.norm2(self.conv2(branch)))
        return torch.relu(self.norm3(self.conv3(branch)) + self.shortcut(x))


class ResNet50(nn.Module):
    """224 x 224 RGB in, 1000 logits out; 25,557,032 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        )
        blocks = []
        channels = 64
        for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for position in range(depth):
                blocks.append(Bottleneck(channels, width, stride if position == 0 else 1))
                channels = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(self.normalise(image)))
        logits: torch.Tensor = self.classifier(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def resnet50() -> Network:
    module = make(ResNet50, seed=9)
    scale_norms((part.norm3 for part in module.modules() if isinstance(part, Bottleneck)), 0.4)
    return Network("resnet50", module, (synthetic_photo(3, 224, 224, seed=9),), input_form="image")
