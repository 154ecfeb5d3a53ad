"""The layer that DeepFace is known for, which torch has no module of."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["LocallyConnected2d"]


class LocallyConnected2d(nn.Module):
    """A convolution whose weights are not shared: every output location has its own filters.

    Input batch x ``channels`` x ``size`` x ``size``, output batch x ``filters`` x ``out`` x ``out`` with
    ``out = (size - kernel) // stride + 1``, no padding.  One matrix product per location
    (Taigman et al., CVPR 2014, section 3.2).
    """

    def __init__(self, channels: int, filters: int, size: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.out = (size - kernel) // stride + 1
        self.weight = nn.Parameter(torch.empty(self.out**2, filters, channels * kernel**2))
        self.bias = nn.Parameter(torch.empty(filters, self.out, self.out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = nn.functional.unfold(x, self.kernel, stride=self.stride)
        products = torch.bmm(self.weight, patches.permute(2, 1, 0))
        return products.permute(2, 1, 0).reshape(x.shape[0], -1, self.out, self.out) + self.bias
