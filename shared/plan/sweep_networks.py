"""Small random networks that cover what networks are made of, for the sweep of one machine.

Each family strings together layers of one world (convolutions, separable convolutions, dense layers,
attention, recurrence, ...), since a layer behind another finds its input in the cache and in the memory
order that the other left, as in a real network.  Sizes are drawn log-uniformly over what is common in
published networks; no particular network is in it.  The same seed gives the same networks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

__all__ = ["FAMILIES", "SweepNetwork", "sweep_networks"]


class SweepNetwork(NamedTuple):
    name: str
    module: nn.Module
    args: tuple[torch.Tensor, ...]


class _Chain(nn.Module):
    """Layers in a row; a layer may be any function of one tensor."""

    def __init__(self, *layers: nn.Module | Callable[[Any], Any]) -> None:
        super().__init__()
        self.layers = list(layers)
        self.parts = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


class _Residual(_Chain):
    def forward(self, x: torch.Tensor) -> Any:
        return x + super().forward(x)


Draw = random.Random
Built = tuple[nn.Module, tuple[torch.Tensor, ...]]


def _size(draw: Draw, least: int, most: int, multiple: int = 1) -> int:
    """Log-uniform between the two, rounded to a multiple."""
    value = math.exp(draw.uniform(math.log(least), math.log(most)))
    return max(multiple, round(value / multiple) * multiple)


def _activation(draw: Draw) -> nn.Module:
    activation: type[nn.Module] = draw.choice([nn.ReLU, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Sigmoid])
    return activation()


def _image(channels: int, side: int) -> torch.Tensor:
    return torch.rand(1, channels, side, side)


def _image_stem(draw: Draw) -> Built:
    """A uint8 image, normalised, and a first convolution with pooling."""
    side = _size(draw, 32, 320)
    kernel, stride = draw.choice([(3, 1), (3, 2), (5, 1), (7, 2), (11, 4)])
    channels = draw.choice([1, 3, 3])
    width = _size(draw, 8, 96, 8)
    mean = torch.rand(channels, 1, 1)
    module = _Chain(
        lambda x: (x.float() - mean) / (mean + 1),
        nn.Conv2d(channels, width, kernel, stride, kernel // 2),
        draw.choice([nn.ReLU, nn.ReLU6, nn.Identity])(),
        nn.MaxPool2d(draw.choice([2, 3]), 2),
    )
    return module, (torch.randint(0, 256, (1, channels, side, side), dtype=torch.uint8),)


def _convolutions(draw: Draw) -> Built:
    """Convolutions of all kernels, with batch norm, residuals and pooling, down to small sides."""
    side, channels = _size(draw, 28, 160), _size(draw, 16, 96, 8)
    layers: list[nn.Module] = []
    start = _image(channels, side)
    for _ in range(8):
        kernel = draw.choice([1, 1, 3, 3, 3, 5, 7])
        most = min(1024, max(16, int(4e8 / (channels * kernel**2 * side**2))))
        width = _size(draw, 16, max(17, most), 8)
        convolution = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=draw.random() < 0.5)
        layers.append(_Chain(convolution, nn.BatchNorm2d(width), _activation(draw)))
        if draw.random() < 0.3:
            layers.append(_Residual(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)))
        channels = width
        if side >= 8 and draw.random() < 0.4:
            pool = draw.choice([nn.MaxPool2d, nn.AvgPool2d])(*draw.choice([(2, 2), (3, 2)]))
            layers.append(draw.choice([pool, nn.Conv2d(channels, channels, 3, 2, 1)]))
            side //= 2
    return _Chain(*layers, nn.AdaptiveAvgPool2d(1)), (start,)


def _separable(draw: Draw) -> Built:
    """Inverted residuals (pointwise, depthwise, pointwise) and grouped convolutions."""
    side, channels = _size(draw, 7, 120), _size(draw, 16, 320, 8)
    start = _image(channels, side)
    layers: list[nn.Module] = []
    for _ in range(4):
        wide, kernel, stride = (
            channels * draw.choice([1, 2, 4, 6]),
            draw.choice([3, 3, 5]),
            draw.choice([1, 1, 2]),
        )
        if wide * side * side > 2_000_000:
            wide = channels
        groups = draw.choice([wide, wide, wide, 2, 4, 8])
        block = _Chain(
            nn.Sequential(nn.Conv2d(channels, wide, 1), nn.ReLU6()),
            nn.Sequential(nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=groups), nn.ReLU6()),
            nn.Conv2d(wide, channels, 1),
        )
        layers.append(_Residual(block) if stride == 1 else block)
        side = (side + stride - 1) // stride
    return _Chain(*layers), (start,)


def _dense(draw: Draw) -> Built:
    """Fully connected layers, for one row or for many."""
    rows = draw.choice([1, 1, 1, _size(draw, 2, 256)])
    most = 4096 if rows == 1 else 1536
    widths = [_size(draw, 32, most) for _ in range(6)]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), draw.choice([nn.Identity, nn.GELU, nn.ReLU, nn.Sigmoid])()]
    return _Chain(*layers, nn.Softmax(-1)), (torch.randn(1, rows, widths[0]),)


def _wide(draw: Draw) -> Built:
    """Fully connected layers whose weights outgrow the caches, as at the end of older image networks."""
    widths = [_size(draw, 2048, 9216) for _ in range(3)]
    layers = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
    rows = draw.choice([1, 1, 1, 32])
    return _Chain(*layers, nn.Linear(widths[-1], _size(draw, 100, 2048))), (torch.randn(rows, widths[0]),)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, whole: bool) -> None:
        super().__init__()
        self.split = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads, self.whole = heads, whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        parts = self.split(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        if self.whole:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = torch.matmul(torch.softmax(torch.matmul(query, key.transpose(2, 3)) / 8, -1), value)
        result: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return result


def _transformer(draw: Draw) -> Built:
    heads = draw.choice([1, 2, 3, 4, 6, 8, 12])
    width, tokens = heads * draw.choice([16, 32, 64]), _size(draw, 8, 320)
    attention = _Residual(nn.LayerNorm(width), _Attention(width, heads, draw.random() < 0.6))
    wide = width * draw.choice([2, 4])
    mixing = _Residual(nn.LayerNorm(width), nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))
    return _Chain(attention, mixing, nn.LayerNorm(width)), (torch.randn(1, tokens, width),)


def _recurrent(draw: Draw) -> Built:
    inputs, hidden, steps = _size(draw, 16, 256), _size(draw, 32, 320), _size(draw, 5, 120)
    cell = draw.choice([nn.LSTM, nn.LSTM, nn.GRU])
    layers = [
        cell(inputs, hidden, draw.choice([1, 2]), batch_first=True),
        cell(hidden, hidden, batch_first=True),
    ]
    first, second = layers
    module = _Chain(
        first, lambda pair: pair[0], second, lambda pair: pair[0][:, -1], nn.Linear(hidden, inputs)
    )
    return module, (torch.randn(1, steps, inputs),)


class _Local(nn.Module):
    """Filters of its own at every place: patches, then one small product for each place."""

    def __init__(self, channels: int, filters: int, side: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.places = ((side - kernel) // stride + 1) ** 2
        self.weight = nn.Parameter(torch.randn(self.places, filters, channels * kernel**2) * 0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = functional.unfold(x, self.kernel, stride=self.stride)
        products = torch.bmm(self.weight, patches.permute(2, 1, 0)).permute(2, 1, 0)
        return products.reshape(x.shape[0], -1, math.isqrt(self.places), math.isqrt(self.places))


def _local(draw: Draw) -> Built:
    side, channels = _size(draw, 10, 48), draw.choice([4, 8, 16])
    start = _image(channels, side)
    layers: list[nn.Module] = []
    for _ in range(2):
        kernel, stride, filters = draw.choice([3, 5, 7]), draw.choice([1, 1, 2]), draw.choice([4, 8, 16])
        if side <= kernel:
            break
        layers += [_Local(channels, filters, side, kernel, stride), nn.ReLU()]
        side, channels = (side - kernel) // stride + 1, filters
    return _Chain(*layers), (start,)


def _lone(draw: Draw) -> Built:
    """Normalisation, activation, sums, pooling and concatenation that nothing fuses with."""
    side, channels = _size(draw, 7, 128), _size(draw, 8, 256, 8)
    module = _Chain(
        nn.MaxPool2d(3, 1, 1),
        nn.LocalResponseNorm(5),
        lambda x: x + x.mean((2, 3), keepdim=True),
        nn.ReLU(),
        nn.BatchNorm2d(channels),
        lambda x: torch.cat([x, x * 0.5], 1),
        nn.GroupNorm(4, 2 * channels),
        lambda x: x.sigmoid() * x,
        nn.AvgPool2d(3, 2, 1),
        lambda x: functional.pad(x, (1, 1, 1, 1)),
        lambda x: torch.softmax(x.flatten(2), -1),
        nn.GELU(),
        lambda x: x.tanh().sum(2),
        nn.LayerNorm(2 * channels),
    )
    return module, (_image(channels, side),)


class _UpAndDown(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 2 * channels, 3, 2, 1)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.join = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.join(torch.cat([x, self.up(self.down(x).relu())], 1))
        return functional.interpolate(result.relu(), scale_factor=2.0)


def _decoder(draw: Draw) -> Built:
    channels = _size(draw, 8, 128, 8)
    return _UpAndDown(channels), (_image(channels, 2 * _size(draw, 4, 48)),)


class _Lookup(nn.Module):
    def __init__(self, rows: int, width: int, filters: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.window = nn.Conv1d(width, filters, 3, padding=1)
        self.turn = nn.Conv1d(filters, width, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        x = self.turn(self.window(x.transpose(1, 2)).relu()).transpose(1, 2) + x
        return functional.normalize(x.mean(1), dim=1)


def _words(draw: Draw) -> Built:
    width, tokens = _size(draw, 16, 512), _size(draw, 8, 400)
    return _Lookup(5000, width, _size(draw, 16, 512)), (torch.randint(0, 5000, (1, tokens)),)


FAMILIES: dict[str, tuple[Callable[[Draw], Built], int]] = {
    "stem": (_image_stem, 12),
    "convolutions": (_convolutions, 14),
    "separable": (_separable, 12),
    "dense": (_dense, 12),
    "wide": (_wide, 6),
    "transformer": (_transformer, 16),
    "recurrent": (_recurrent, 6),
    "local": (_local, 8),
    "lone": (_lone, 10),
    "decoder": (_decoder, 10),
    "words": (_words, 8),
}
"""A builder and how many of its networks a full sweep holds."""


def sweep_networks(seed: int = 0, share: float = 1.0) -> Iterator[SweepNetwork]:
    """The networks of a sweep, one at a time, in an order that mixes the families.

    ``share`` of each family's networks, at least one.  The global random state is left as it was.
    """
    counts = {family: max(1, round(share * count)) for family, (_, count) in FAMILIES.items()}
    order = [
        (number / counts[family], number, family) for family in counts for number in range(counts[family])
    ]
    for _, number, family in sorted(order):
        name = f"{family}-{number}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module, args = FAMILIES[family][0](random.Random(f"{seed} {name}"))
        yield SweepNetwork(name, module.eval().requires_grad_(False), args)
