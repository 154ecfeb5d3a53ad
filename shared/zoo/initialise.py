"""Seeded weights that are the same bit for bit on every machine.

torch's normal distribution goes through vectorised logarithms and cosines, whose last bits differ
between instruction sets; a Jetson and an x86 server would then hold different networks under one seed.
Its uniform float32 is a 24-bit integer times 2**-24, exact everywhere, and so are the few IEEE
operations applied to it here.

Random weights must also make a network that *behaves*: activations of order one at every depth, and
logits that depend on the input, or lossy codecs and accuracy gates have nothing to work on.  Plain He
initialisation loses the second in deep ReLU networks, since the positive mean of the activations
drowns what differs between inputs.  Weights that sum to zero over their inputs remove that mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from shared.zoo.image_input import Normalise
from shared.zoo.locally_connected import LocallyConnected2d

__all__ = ["RELU_GAIN", "make", "scale_norms"]

# How much of its mean is taken off a filter.  With none, deep ReLU outputs hardly depend on the input; with
# all, layer after layer amplifies rounding until float32 itself is 1e-5 away from the network.
_SHARE = 0.55

# A filter without its mean sees only the variance of its inputs, 1/2 - 1/(2 pi) for the ReLU of a unit
# Gaussian, and with all of it their second moment, 1/2 (He et al., ICCV 2015); this gain makes up for it.
RELU_GAIN = 1.0 / (0.5 - (1.0 - (1.0 - _SHARE) ** 2) * 0.5 / math.pi)

# A depthwise filter that summed to zero would see nothing but edges, and photographs are smooth.
_DEPTHWISE_SHARE = 0.35

_CHUNK = 1 << 22
_SMALL = 0.02


def make(
    build: Callable[[], nn.Module], seed: int, *, gain: float = RELU_GAIN, centred: bool = True
) -> nn.Module:
    """Build a module without drawing torch's own initial weights, fill it, and put it in eval mode.

    ``gain`` is the variance of a layer's output per mean variance of its inputs that the following
    activation needs; ``centred`` takes a share of their mean off the weights of every layer behind the
    first.  Layer biases and raw parameters are small and not zero, batch norms have statistics near
    zero and one, so that no rewriting of them is trivially right.
    """
    with torch.device("meta"):
        module = build()
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            _fill(part, generator, gain, centred)
    module.requires_grad_(False)
    return module.eval()


def scale_norms(norms: Iterable[nn.Module], factor: float) -> None:
    """Damp the last norm of residual branches: their sum would else double in variance per block."""
    with torch.no_grad():
        for norm in norms:
            assert isinstance(norm, nn.BatchNorm2d)
            norm.weight.mul_(factor)
            norm.bias.mul_(factor)


def _fill(part: nn.Module, generator: torch.Generator, gain: float, centred: bool) -> None:
    if isinstance(part, Normalise):
        part.reset()
    elif isinstance(part, nn.BatchNorm2d):
        for tensor, centre, spread in (
            (part.weight, 1.0, 0.2),
            (part.bias, 0.0, 0.1),
            (part.running_mean, 0.0, 0.1),
            (part.running_var, 1.0, 0.2),
        ):
            assert tensor is not None
            _draw(tensor, generator, spread).add_(centre)
        assert part.num_batches_tracked is not None
        part.num_batches_tracked.zero_()
    elif isinstance(part, nn.LayerNorm):
        _draw(part.weight, generator, 0.1).add_(1.0)
        _draw(part.bias, generator, _SMALL)
    elif isinstance(part, nn.ConvTranspose2d):
        overlap = math.prod(part.kernel_size) / math.prod(part.stride)
        _draw(part.weight, generator, _bound(1.0, part.in_channels * overlap))
        _fill_bias(part.bias, generator)
    elif isinstance(part, (nn.Conv2d, nn.Linear, LocallyConnected2d)):
        rows = part.weight.flatten(0, 1) if isinstance(part, LocallyConnected2d) else part.weight
        fan_in = rows[0].numel()
        depthwise = isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1
        share = _DEPTHWISE_SHARE if depthwise else _SHARE if rows.shape[1] > 3 else 0.0
        share = share if centred else 0.0
        _draw(rows, generator, _bound(gain, fan_in), centre_share=share)
        _fill_bias(part.bias, generator)
    else:
        for raw in part.parameters(recurse=False):
            _draw(raw, generator, _SMALL * math.sqrt(3))


def _bound(gain: float, fan_in: float) -> float:
    """Half-width of the uniform distribution whose variance is ``gain / fan_in``."""
    return math.sqrt(3 * gain / fan_in)


def _fill_bias(bias: torch.Tensor | None, generator: torch.Generator) -> None:
    if bias is not None:
        _draw(bias, generator, 0.05)


def _draw(
    tensor: torch.Tensor, generator: torch.Generator, bound: float, *, centre_share: float = 0.0
) -> torch.Tensor:
    """Fill in place, uniform in [-bound, bound), then take ``centre_share`` of each row's mean off it.

    A row is what dimension 0 indexes.  Works in chunks of rows to keep memory low.
    """
    rows = tensor.view(tensor.shape[0], -1)
    step = max(1, _CHUNK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        chunk = rows[start : start + step]
        uniform = torch.rand(chunk.shape, generator=generator).sub_(0.5)
        if centre_share:
            # Multiples of 2**-24 add up exactly in float64, in whatever order a machine adds them.
            mean = uniform.sum(1, keepdim=True, dtype=torch.float64) / uniform.shape[1]
            uniform.sub_((mean * centre_share).to(torch.float32))
        chunk.copy_(uniform.mul_(2 * bound))
    return tensor
