"""Small networks, each of which breaks a naive way of cutting."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


class Residual(nn.Module):
    """A skip connection over conv+bn, the sum in place, a projection on the skip, relu in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True))
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(True))
        self.two = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16))
        self.skip = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.two(self.one(x))
        y += self.skip(x)
        y = F.relu_(y)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Dense(nn.Module):
    """Concatenations that keep every earlier value alive, batch norm before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(3 + 4 * i), nn.ReLU(), nn.Conv2d(3 + 4 * i, 4, 3, padding=1))
            for i in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x.mean((2, 3))


class Split(nn.Module):
    """Chunks and splits whose parts have unequal fates, one of them none."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 24)
        self.outer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.inner(x).chunk(3, -1)
        first, _unused, last = torch.split(b, [2, 3, 3], -1)
        gated = torch.sigmoid(a) * c
        return self.outer(gated) + first.sum(-1, keepdim=True) - last.amax(-1, keepdim=True)


class Tied(nn.Module):
    """A language model's head that is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


class Recurrent(nn.Module):
    """An LSTM whose zero state depends on the batch, then its last step only."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 7, num_layers=2, batch_first=True)
        self.gru = nn.GRU(7, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (hidden, _cell) = self.lstm(x)
        z, _ = self.gru(y)
        return self.head(z[:, -1]), hidden.transpose(0, 1)


class CacheStep(nn.Module):
    """One decoding step: a tuple of keys and values in, a dict out, written through an alias."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor]) -> dict[str, Any]:
        q, k, v = self.qkv(x).view(-1, 3, 2, 4).unbind(1)
        keys, values = (old.clone() for old in cache)
        keys[:, :, -1] = k
        values[:, :, -1].copy_(v)
        scores = torch.einsum("bhd,bhtd->bht", q, keys).softmax(-1)
        mixed = torch.einsum("bht,bhtd->bhd", scores, values)
        return {"y": x + self.out(mixed.reshape(-1, 8)), "cache": (keys, values), "scores": scores}


class ClassToken(nn.Module):
    """A class token expanded to the batch, position embeddings, attention by hand and by torch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 17, 16))
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        q, k, v = self.qkv(self.norm(x)).reshape(x.shape[0], 17, 3, 2, 8).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return self.head(self.layer(x)[:, 0])


class PostNorm(nn.Module):
    """Encoder layers over (time, batch) that look at one tensor straight and transposed, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.encoder(x, mask=mask, is_causal=True)


class Alias(nn.Module):
    """In-place work on views of an intermediate result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        top, bottom = y[:, :3], y[:, 3:]
        top.mul_(2).clamp_(min=-1)
        bottom += top
        return F.leaky_relu(y, 0.1, inplace=True).transpose(1, 2)


class EarlyExit(nn.Module):
    """Outputs that are ready half way, an output that is also used further on, the input handed back."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)
        self.exit = nn.Linear(6, 2)
        self.register_buffer("labels", torch.arange(2.0))

    def forward(self, x: Tensor, late: Tensor) -> dict[str, Any]:
        y = torch.relu(self.one(x))
        early = self.exit(y)
        z = self.two(y)
        return {"early": early, "late": (z + late, [y, y.t()]), "same": x, "labels": self.labels}


class Photograph(nn.Module):
    """A uint8 image, channels last, normalised in the network."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = (image.permute(0, 3, 1, 2).float() / 255 - self.mean) / 0.25
        x = F.hardswish(self.conv(x))
        x = F.silu(self.depthwise(x) + x)
        return self.head(x.mean((2, 3)))


class BatchFacts(nn.Module):
    """Constants that depend on the batch size and on the weights only."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))
        self.start = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        state = self.start.repeat(x.shape[0], 1)
        rows = torch.arange(x.shape[0] * 2).view(-1, 2).float().mean(1, keepdim=True)
        for _ in range(3):
            state = torch.tanh(self.scale(state) + x)
        return torch.where(x > 0, state, torch.zeros_like(x)) * rows + torch.ones_like(state)


class LastStep(nn.Module):
    """A slice that begins anywhere in memory, into kernels that round by the alignment of their input."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(17, 513)
        self.narrow = nn.Linear(17, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(x)[:, -1]
        return self.wide(y), self.narrow(y)


@dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class DataclassOut(nn.Module):
    """Keyword arguments, flags, and a dataclass with an empty field as result."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = False) -> Answer:
        y = self.linear(x)
        if mask is not None:
            y = y.masked_fill(mask, 0.0)
        return Answer(y.softmax(-1) if flag else y, (x, y))


class Ordered(nn.Module):
    """An OrderedDict as result, a branch that reads two inputs late."""

    def forward(self, pair: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
        total = pair["b"].cumsum(1)
        return OrderedDict(z=total * pair["a"], a=pair["a"].flip(1))


def _image(*size: int) -> Tensor:
    return torch.randn(1, *size)


def _channels_last() -> Example:
    return Residual().to(memory_format=torch.channels_last), (_image(3, 12, 12),), {}  # type: ignore[call-overload]


_CASES: dict[str, Callable[[], Example]] = {
    "residual": lambda: (Residual(), (_image(3, 12, 12),), {}),
    "channels-last": _channels_last,
    "dense": lambda: (Dense(), (_image(3, 8, 8),), {}),
    "split": lambda: (Split(), (_image(12),), {}),
    "tied": lambda: (Tied(), (torch.randint(0, 30, (1, 9)),), {}),
    "recurrent": lambda: (Recurrent(), (_image(11, 6),), {}),
    "cache-step": lambda: (CacheStep(), (_image(8), (_image(2, 5, 4), _image(2, 5, 4))), {}),
    "class-token": lambda: (ClassToken(), (_image(3, 16, 16),), {}),
    "post-norm": lambda: (PostNorm(), (_image(7, 8),), {}),
    "alias": lambda: (Alias(), (_image(4, 10),), {}),
    "early-exit": lambda: (EarlyExit(), (_image(6), _image(6)), {}),
    "photograph": lambda: (Photograph(), (torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8),), {}),
    "batch-facts": lambda: (BatchFacts(), (_image(5),), {}),
    "last-step": lambda: (LastStep(), (_image(3, 17),), {}),
    "dataclass": lambda: (DataclassOut(), (_image(4),), {"mask": _image(4) > 0, "flag": True}),
    "ordered": lambda: (Ordered(), ({"a": _image(6), "b": _image(6)},), {}),
}

NAMES = tuple(_CASES)


def build(name: str, seed: int = 0) -> Example:
    """The network in eval mode with its example at batch 1, the same for the same seed.

    Batch norms get statistics that are not the identity.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, args, kwargs = _CASES[name]()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
                part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                nn.init.normal_(part.weight, 1, 0.2)
                nn.init.normal_(part.bias, 0, 0.2)
    return module.eval(), args, kwargs
