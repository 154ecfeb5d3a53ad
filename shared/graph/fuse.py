"""Fold and fuse for speed, unit by unit, after loading and on each machine for itself.

Batch norms are folded into the convolution or linear layer before them; where there are 2-D
convolutions, tensors are kept channels last; and oneDNN, where this torch has it, runs a convolution
with its residual sum and activation as one call on weights packed in advance (the operators that
Inductor's freezing uses: ``torch/_inductor/fx_passes/mkldnn_fusion.py``).  Those are semi-private, so
they are tried first, and without them the folded convolution runs plainly.

The units, and the values that cross a cut, are those of the canonical graph; only memory orders differ.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from shared.graph.calls import Call, call_of, overload
from shared.graph.ir import Graph, Op, Ref
from shared.graph.operators import base_name, is_activation, is_batch_norm, is_residual
from shared.tensor import SymbolicSpec

__all__ = ["fused_calls", "onednn_works"]

_CONV2D = "aten.conv2d.default"
_LINEAR = "aten.linear.default"
_FUSABLE = frozenset((_CONV2D, _LINEAR, "aten.conv1d.default", "aten.conv3d.default"))
_NORM = "aten._native_batch_norm_legit_no_training.default"
_CONV_DEFAULTS = (None, None, None, (1, 1), (0, 0), (1, 1), 1)

Attribute = tuple[str, list[float], str]


def fused_calls(graph: Graph, constants: Mapping[int, Any], device: torch.device) -> list[list[Call]]:
    """The calls of every unit.  ``constants`` are weights and what was folded of the preamble, by slot."""
    onednn = device.type == "cpu" and onednn_works()
    return [
        _UnitFuser(unit.ops, constants, graph.values, device, onednn=onednn).calls() for unit in graph.units
    ]


@functools.cache
def onednn_works() -> bool:
    """Whether oneDNN's fused convolution is in this torch and gives what an ordinary one does."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 8, 6, 6, generator=generator).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(8, 8, 3, 3, generator=generator)
    bias = torch.randn(8, generator=generator)
    expected = torch.relu(torch.conv2d(image, weight, bias, padding=1))
    try:
        rest = ([1, 1], [1, 1], [1, 1], 1)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *rest, (1, 8, 6, 6))
        single = _conv(image, packed, bias, rest, ("relu", [], ""))
        summed = _conv_sum(image, image, packed, bias, rest, ("add", None, "relu", [], None))
        packed = torch.ops.mkldnn._reorder_linear_weight(bias[None], 8)
        torch.ops.mkldnn._linear_pointwise.default(weight.reshape(-1, 8), packed, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):  # another torch, or a build without it
        return False
    expected_sum = torch.relu(torch.conv2d(image, weight, bias, padding=1) + image)
    return torch.allclose(single, expected, atol=1e-4) and torch.allclose(summed, expected_sum, atol=1e-4)


def _activation(op: Op) -> Attribute | None:
    """oneDNN's name for an activation, its scalars and algorithm; None where it has none."""
    name = base_name(op.target)
    if name in ("relu", "hardswish", "sigmoid", "tanh"):
        return name, [], ""
    if name == "gelu":
        return "gelu", [], str(dict(op.kwargs).get("approximate", "none"))
    if name == "silu":
        return "swish", [], ""
    if name == "relu6":
        return "hardtanh", [0.0, 6.0], ""
    if name == "hardtanh":
        limits = [float(arg) for arg in op.args[1:] if isinstance(arg, (int, float))]
        return "hardtanh", limits or [-1.0, 1.0], ""
    if name == "leaky_relu":
        return "leaky_relu", [float(op.args[1]) if len(op.args) > 1 else 0.01], ""  # type: ignore[arg-type]
    return None


class _UnitFuser:
    """One unit: its anchor (a convolution or a linear layer) and the operators that follow in one pass."""

    def __init__(
        self,
        ops: Sequence[Op],
        constants: Mapping[int, Any],
        values: Mapping[int, SymbolicSpec],
        device: torch.device,
        *,
        onednn: bool,
    ) -> None:
        self.ops = ops
        self.constants = constants
        self.values = values
        self.device = device
        self.onednn = onednn

    def calls(self) -> list[Call]:
        start = next((index for index, op in enumerate(self.ops) if op.target in _FUSABLE), None)
        if start is None or not self._is_plain_float(self.ops[start]):
            return [self._plain(op) for op in self.ops]
        rest = list(self.ops[start:])
        anchor = rest.pop(0)
        weight, bias = self._constant(anchor, 1), self._constant(anchor, 2)
        out = anchor.outputs[0]
        norm = self._next(rest, out, is_batch_norm)
        if norm is not None and not self._folds(anchor, norm):
            return [self._plain(op) for op in self.ops]
        if norm is not None:
            rest.remove(norm)
            weight, bias = _folded(weight, bias, [self._constant(norm, index) for index in range(1, 5)], norm)
            out = norm.outputs[0]
        made = {_CONV2D: self._convolution, _LINEAR: self._linear}.get(anchor.target)
        fused = made(anchor, weight, bias, rest, out) if made is not None and self.onednn else None
        if fused is None:
            fused = self._unfused(anchor, weight, bias, out)
        before = [self._plain(op) for op in self.ops[:start]]
        return [*before, fused, *(self._plain(op) for op in rest)]

    def _plain(self, op: Op) -> Call:
        return call_of(op, self.device, reshape=True)

    def _constant(self, op: Op, index: int) -> Any:
        arg = op.args[index] if len(op.args) > index else None
        return self.constants.get(arg.slot) if isinstance(arg, Ref) else None

    def _is_plain_float(self, anchor: Op) -> bool:
        """Weights known when loading, in float32; a batch in front of the channels."""
        weight = self._constant(anchor, 1)
        if weight is None or weight.dtype != torch.float32 or not self._is_known(anchor, 2):
            return False
        return anchor.target == _LINEAR or len(self.values[anchor.outputs[0]].dims) == weight.dim()

    def _is_known(self, op: Op, index: int) -> bool:
        """Whether an argument that may be left out is left out, or a constant."""
        return len(op.args) <= index or op.args[index] is None or self._constant(op, index) is not None

    def _next(self, rest: Sequence[Op], slot: int, wanted: Callable[[str], bool]) -> Op | None:
        """The operator that takes ``slot`` further; the unit's form says that it is the only reader."""
        readers = [op for op in rest if slot in op.reads]
        return readers[0] if len(readers) == 1 and wanted(readers[0].target) else None

    def _folds(self, anchor: Op, norm: Op) -> bool:
        statistics = self._constant(norm, 3) is not None and self._constant(norm, 4) is not None
        known = statistics and self._is_known(norm, 1) and self._is_known(norm, 2)
        over_channels = anchor.target != _LINEAR or len(self.values[anchor.outputs[0]].dims) == 2
        return known and over_channels and norm.target == _NORM

    def _convolution(
        self, anchor: Op, weight: torch.Tensor, bias: torch.Tensor | None, rest: list[Op], out: int
    ) -> Call | None:
        """oneDNN's convolution with what it can take over from ``rest``, which is removed from there."""
        args = (*anchor.args, *_CONV_DEFAULTS[len(anchor.args) :])
        stride, padding, dilation, groups = (list(args[3]), list(args[4]), list(args[5]), args[6])  # type: ignore[arg-type]
        size = self.values[anchor.reads[0]].at(1).shape
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight.contiguous(memory_format=torch.channels_last), padding, stride, dilation, groups, size
        )
        geometry = (padding, stride, dilation, groups)
        image = anchor.args[0]
        total = self._residual(rest, out)
        if total is not None:
            rest.remove(total)
            (other,) = [slot for slot in total.reads if slot != out]
            out = total.outputs[0]
            relu = self._next(rest, out, lambda target: target == "aten.relu.default")
            if relu is not None:
                rest.remove(relu)
                out = relu.outputs[0]
            tail: tuple[Any, ...] = ("add", None, None if relu is None else "relu", [], None)
            return _call(_conv_sum, (image, Ref(other), packed, bias, geometry, tail), out)
        attribute, out = self._activated(rest, out)
        return _call(_conv, (image, packed, bias, geometry, attribute), out)

    def _linear(
        self, anchor: Op, weight: torch.Tensor, bias: torch.Tensor | None, rest: list[Op], out: int
    ) -> Call | None:
        """oneDNN's linear layer where it is the faster one here."""
        rows = math.prod(self.values[anchor.reads[0]].at(1).shape[:-1])
        if not _onednn_linear_is_faster(rows, *weight.shape, torch.get_num_threads()):
            return None
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        total = self._residual(rest, out)
        if total is not None:
            rest.remove(total)
            (other,) = [slot for slot in total.reads if slot != out]
            operands = (anchor.args[0], Ref(other), packed, bias, "add")
            return _call(torch.ops.mkldnn._linear_pointwise.binary, operands, total.outputs[0])
        attribute, out = self._activated(rest, out)
        args = (anchor.args[0], packed, bias, *attribute)
        return _call(torch.ops.mkldnn._linear_pointwise.default, args, out)

    def _residual(self, rest: Sequence[Op], out: int) -> Op | None:
        """A sum of two tensors of one size with no factor on either, the other one computed in a unit."""
        total = self._next(rest, out, is_residual)
        if total is None or len(total.reads) != 2 or total.kwargs:
            return None
        one, other = (self.values.get(slot) for slot in total.reads)
        computed = not any(slot in self.constants for slot in total.reads)
        alike = one is not None and other is not None and (one.dims, one.dtype) == (other.dims, other.dtype)
        return total if computed and alike else None

    def _activated(self, rest: list[Op], out: int) -> tuple[Attribute, int]:
        following = self._next(rest, out, is_activation)
        attribute = None if following is None else _activation(following)
        if following is None or attribute is None:
            return ("none", [], ""), out
        rest.remove(following)
        return attribute, following.outputs[0]

    def _unfused(self, anchor: Op, weight: torch.Tensor, bias: torch.Tensor | None, out: int) -> Call:
        function = overload(anchor.target)
        if anchor.target != _CONV2D:
            return _call(function, (anchor.args[0], weight, bias, *anchor.args[3:]), out)
        weight = weight.contiguous(memory_format=torch.channels_last)
        return _call(_channels_last_conv, (anchor.args[0], weight, bias, *anchor.args[3:]), out)


def _call(function: Callable[..., Any], args: tuple[Any, ...], out: int) -> Call:
    return Call(function, args, {}, (out,), True)


def _conv(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Sequence[Any],
    attribute: Sequence[Any],
) -> torch.Tensor:
    image = image.contiguous(memory_format=torch.channels_last)
    convolution = torch.ops.mkldnn._convolution_pointwise.default
    result: torch.Tensor = convolution(image, weight, bias, *geometry, *attribute)
    return result


def _conv_sum(
    image: torch.Tensor,
    other: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Sequence[Any],
    tail: Sequence[Any],
) -> torch.Tensor:
    image = image.contiguous(memory_format=torch.channels_last)
    other = other.contiguous(memory_format=torch.channels_last)
    convolution = torch.ops.mkldnn._convolution_pointwise.binary
    result: torch.Tensor = convolution(image, other, weight, bias, *geometry, *tail)
    return result


def _channels_last_conv(image: torch.Tensor, *args: Any) -> torch.Tensor:
    image = image.contiguous(memory_format=torch.channels_last)
    result: torch.Tensor = torch.ops.aten.conv2d.default(image, *args)
    return result


def _folded(
    weight: torch.Tensor, bias: torch.Tensor | None, constants: Sequence[Any], norm: Op
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias that do the work of the batch norm too, computed in float64."""
    gamma, beta = (None if item is None else item.double() for item in constants[:2])
    mean, variance = (item.double() for item in constants[2:])
    epsilon = float(norm.args[6])  # type: ignore[arg-type]
    scale = torch.rsqrt(variance + epsilon)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    if bias is not None:
        shift = shift + bias.double() * scale
    scaled = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return scaled.float(), shift.float()


@functools.lru_cache(maxsize=512)
def _onednn_linear_is_faster(rows: int, outputs: int, inputs: int, threads: int) -> bool:
    """Measured here and now, on zeros of the same size: it depends on the processor and its BLAS."""
    x, weight, bias = torch.zeros(rows, inputs), torch.zeros(outputs, inputs), torch.zeros(outputs)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    fused = torch.ops.mkldnn._linear_pointwise.default

    def best(run: Callable[[], object]) -> float:
        times = []
        for _ in range(4):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return min(times)

    ordinary = best(lambda: torch.ops.aten.linear.default(x, weight, bias))
    return best(lambda: fused(x, packed, bias, "none", [], "")) < 0.9 * ordinary
