"""Small networks that the agent's tests name as factories."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shared.zoo import Network
from shared.zoo.image_input import synthetic_photo

BATCH_ONE = torch.arange(3 * 16 * 16, dtype=torch.uint8).reshape(1, 16, 16, 3)


class Photos(nn.Module):
    """A uint8 image in, a probability per class out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.permute(0, 3, 1, 2).float() / 255.0
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x))
        return torch.softmax(self.head(x.mean((2, 3))), dim=-1)


class Trees(nn.Module):
    """Nested inputs, and outputs of which some are ready early."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 6)
        self.right = nn.Linear(6, 3)

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor], extra: dict[str, torch.Tensor]) -> Any:
        early = self.left(pair[0] + pair[1])
        late = self.right(torch.tanh(early)) + extra["bias"]
        return {"early": early, "late": (late, late.argmax(-1))}


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens)).sum(1)


class Masked(nn.Module):
    """Floats and integers in, both of which cross the first cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4096, 8)

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(values)
        return torch.tanh(self.first(x * mask.clamp(max=1).float()))


class Landscapes(nn.Module):
    """A classifier of smooth images, with a branch, so that two tensors cross some cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16 * 4 * 4, 6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(image.float()))
        x = torch.relu(self.second(x))
        x = x + torch.tanh(self.third(x))
        return self.head(nn.functional.avg_pool2d(x, 4).flatten(1))


def landscapes() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(5)
    network = Landscapes().eval()
    with torch.no_grad():
        network.first.weight /= 64
    return network, (synthetic_photo(3, 32, 32, 0),)


def views() -> list[tuple[torch.Tensor]]:
    """Calibration inputs of ``landscapes``."""
    return [(synthetic_photo(3, 32, 32, seed),) for seed in range(24)]


def photos() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(1)
    return Photos().eval(), (BATCH_ONE,)


def other_photos() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """The same network with other weights."""
    torch.manual_seed(2)
    return Photos().eval(), (BATCH_ONE,)


def trees() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(3)
    pair = (torch.randn(1, 4), torch.randn(1, 4))
    return Trees().eval(), (pair,), {"extra": {"bias": torch.randn(1, 3)}}


def masked() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(5)
    return Masked().eval(), (torch.randn(1, 4096), torch.arange(4096).reshape(1, 4096) % 2)


def words() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(4)
    return Words().eval(), (torch.arange(6).reshape(1, 6) % 10,)


def digits() -> Network:
    """As the zoo gives a classifier of images."""
    torch.manual_seed(5)
    labels = ("zero", "one", "two", "three", "four")
    return Network("digits", Photos(), (BATCH_ONE,), labels=labels, input_form="image")


class Towers(nn.Module):
    """Two towers over one input, so that either may run on the device while the other is in the cloud."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(12, 2000), nn.Tanh(), nn.Linear(2000, 2000), nn.Linear(2000, 4))
        self.right = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4))
        self.top = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, right = self.left(x), self.right(x)
        return self.top(torch.cat([left, right], dim=1)), torch.sigmoid(right)


def towers() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(6)
    return Towers().eval(), (torch.randn(1, 12),)


def calls() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """A classifier whose classes lie close together, so that coarse numbers change some answers."""
    torch.manual_seed(7)
    layers = [nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 200)]
    return nn.Sequential(*layers).eval(), (torch.randn(1, 16),)


class Deep(nn.Module):
    """Many units, of which the first shrinks what there is to send."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(600, 60)
        self.blocks = nn.Sequential(*(nn.Linear(60, 60) for _ in range(38)))
        self.head = nn.Linear(60, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.narrow(x))
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


def deep() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(8)
    return Deep().eval(), (torch.randn(1, 600),)


class Twins(nn.Module):
    """Two images in, each of which is made small at once and then looked at for long."""

    def __init__(self) -> None:
        super().__init__()
        self.left_small, self.right_small = (nn.Conv2d(3, 4, 8, stride=8) for _ in range(2))
        self.left, self.right = (nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(5))) for _ in range(2))
        self.top = nn.Linear(8, 5)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seen = [self.left(self.left_small(left)), self.right(self.right_small(right))]
        return self.top(torch.cat([each.mean((2, 3)) for each in seen], dim=1))


def twins() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(9)
    return Twins().eval(), (torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64))
