"""How each :class:`~shared.codec.ids.Form` writes elements: torch tensors to raw bytes and back.

A coder sees elements in memory order (``dense`` is contiguous, its dimensions permuted by ``order``) and
produces exactly ``layout.nbytes`` bytes; docs/protocol.md shows them byte by byte.
"""

from __future__ import annotations

import warnings
from typing import Protocol

import numpy as np
import torch

from shared.codec.ids import Form
from shared.codec.layout import GROUP_HEADER_BYTES, Layout
from shared.errors import CodecError
from shared.tensor import Shape
from shared.wire.frame import Buffer

__all__ = ["CODERS", "ElementCoder", "exact_bytes"]

_FLOAT16_MAX = 65504.0
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_MIN_SCALE = float(np.finfo(np.float32).tiny)
_SATURATION = 2.0**126
"""Quantised values end here, so that a step and every decoded value stay finite in float32."""

with warnings.catch_warnings():
    # torch warns once in a process of a buffer that is not writable; nothing here writes to what it reads.
    warnings.simplefilter("ignore")
    torch.frombuffer(bytes(1), dtype=torch.uint8)

_LANES = 32
"""Reducing over rows is slow for rows that are not a multiple of this many float32 (torch 2.13)."""


class ElementCoder(Protocol):
    def write(self, dense: torch.Tensor, order: Shape, layout: Layout) -> torch.Tensor | None:
        """The bytes, as a flat uint8 tensor that may alias ``dense``; None if the values do not fit."""

    def read(
        self,
        raw: Buffer,
        shape: Shape,
        order: Shape,
        layout: Layout,
        dtype: torch.dtype,
        share: bool,
    ) -> torch.Tensor:
        """A flat tensor in memory order, which with ``share`` may be a view of ``raw`` and else is new.

        ``raw`` has ``layout.nbytes`` bytes.
        """


class _Exact:
    """The bytes of the elements as they are in memory, little-endian."""

    def write(self, dense: torch.Tensor, order: Shape, layout: Layout) -> torch.Tensor | None:
        return exact_bytes(dense)

    def read(
        self,
        raw: Buffer,
        shape: Shape,
        order: Shape,
        layout: Layout,
        dtype: torch.dtype,
        share: bool,
    ) -> torch.Tensor:
        if dtype is torch.bool:
            # Any other byte in a bool tensor is undefined behaviour in torch.
            return _seen(raw).ne(0)
        return (_seen(raw, dtype.itemsize) if share else _owned(raw)).view(dtype)


class _Half:
    """float16.  Finite values beyond its range saturate; infinities and NaN pass."""

    def write(self, dense: torch.Tensor, order: Shape, layout: Layout) -> torch.Tensor | None:
        least, greatest = (float(end) for end in dense.aminmax())
        if least >= -_FLOAT16_MAX and greatest <= _FLOAT16_MAX:
            half = dense.to(torch.float16)
        else:
            bounded = dense.clamp(-_FLOAT16_MAX, _FLOAT16_MAX)
            half = torch.where(dense.isinf(), dense, bounded).to(torch.float16)
        return exact_bytes(half)

    def read(
        self,
        raw: Buffer,
        shape: Shape,
        order: Shape,
        layout: Layout,
        dtype: torch.dtype,
        share: bool,
    ) -> torch.Tensor:
        return _seen(raw, torch.float16.itemsize).view(torch.float16).to(dtype, copy=not share)


class _Quantised:
    """Codes of ``bits`` bits, asymmetric per group, zero exact: value = (code - zero point) * scale."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._top = 2**bits - 1

    def write(self, dense: torch.Tensor, order: Shape, layout: Layout) -> torch.Tensor | None:
        rows, reduced = _grouped(dense.to(torch.float32), order, layout)
        ends = _range(rows, reduced)
        # The few numbers per group in numpy: its calls cost a third of torch's.
        low, high = (end.numpy() for end in ends)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
        low = np.clip(low, -_SATURATION, 0)
        high = np.clip(high, 0, _SATURATION)
        scale = (high - low) / np.float32(self._top)
        # A subnormal scale has no finite inverse: such a group is zero to within 2**-118.
        scale[scale < _MIN_SCALE] = 0
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        zero = np.rint(-low * inverse)
        codes = rows * torch.from_numpy(inverse)
        codes.round_().add_(torch.from_numpy(zero)).clamp_(0, self._top)
        raw = torch.empty(layout.nbytes, dtype=torch.uint8)
        scales, zeros, body = _sections(raw, layout)
        np.copyto(scales.numpy(), scale.reshape(-1))
        np.copyto(zeros.numpy(), zero.reshape(-1), casting="unsafe")
        if self._bits == 8:
            body.copy_(codes.view(-1))
        else:
            body.copy_(_paired(codes.view(-1).to(torch.uint8)))
        return raw

    def read(
        self,
        raw: Buffer,
        shape: Shape,
        order: Shape,
        layout: Layout,
        dtype: torch.dtype,
        share: bool,
    ) -> torch.Tensor:
        data = _seen(raw)
        scales, zeros, _ = _sections(data[: GROUP_HEADER_BYTES * layout.groups].clone(), layout)
        body = data[GROUP_HEADER_BYTES * layout.groups :]
        steps = scales.numpy()
        if not (steps.min() >= 0 and steps.max() <= _FLOAT32_MAX / self._top):
            raise CodecError("a quantised payload has a scale that is negative or not finite")
        if self._bits < 8:
            if zeros.numpy().max() > self._top:
                raise CodecError(f"a quantised payload has a zero point above {self._top}")
            body = _unpaired(body, layout.numel)
        values = body.to(torch.float32)
        sizes, reduced = _runs(shape, order, layout)
        per_group = [1 if index in reduced else size for index, size in enumerate(sizes)]
        rows = values.view(sizes)
        rows.sub_(zeros.to(torch.float32).view(per_group)).mul_(scales.view(per_group))
        if dtype is torch.float16:
            # Half a step beyond the range may not exist in float16.
            values.clamp_(-_FLOAT16_MAX, _FLOAT16_MAX)
        return values.to(dtype)


CODERS: dict[Form, ElementCoder] = {
    Form.EXACT: _Exact(),
    Form.HALF: _Half(),
    Form.UINT8: _Quantised(8),
    Form.INT4: _Quantised(4),
}


def exact_bytes(dense: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, as a view of it."""
    # Not reshape: it may leave any stride on a tensor of one element or none.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def _seen(raw: Buffer, alignment: int = 1) -> torch.Tensor:
    """The bytes where they are, or a copy of them where torch could not read them there."""
    if not memoryview(raw).nbytes:
        return torch.empty(0, dtype=torch.uint8)
    data = torch.frombuffer(raw, dtype=torch.uint8)
    return data if data.data_ptr() % alignment == 0 else _owned(raw)


def _owned(raw: Buffer) -> torch.Tensor:
    """A copy in torch's own aligned, writable memory.

    A network buffer is neither, and kernels may round differently on unaligned data; the copy takes
    some 2% of the time of a request on loopback.
    """
    data = torch.empty(memoryview(raw).nbytes, dtype=torch.uint8)
    np.copyto(data.numpy(), np.frombuffer(raw, dtype=np.uint8))
    return data


def _sections(raw: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views: scales (float32), zero points (uint8), code bytes."""
    scales_end = 4 * layout.groups
    zeros_end = scales_end + layout.groups
    return raw[:scales_end].view(torch.float32), raw[scales_end:zeros_end], raw[zeros_end:]


def _runs(shape: Shape, order: Shape, layout: Layout) -> tuple[list[int], list[int]]:
    """Memory order with neighbouring dimensions merged that both tell groups apart or both do not.

    Returns the sizes and the indices of those that lie within a group.
    """
    sizes: list[int] = []
    within: list[bool] = []
    for dim in order:
        if shape[dim] == 1:
            continue
        inside = dim not in layout.group_dims
        if within and within[-1] == inside:
            sizes[-1] *= shape[dim]
        else:
            sizes.append(shape[dim])
            within.append(inside)
    return sizes, [index for index, inside in enumerate(within) if inside]


def _grouped(dense: torch.Tensor, order: Shape, layout: Layout) -> tuple[torch.Tensor, list[int]]:
    shape = [0] * len(order)
    for position, dim in enumerate(order):
        shape[dim] = dense.shape[position]
    sizes, reduced = _runs(tuple(shape), order, layout)
    return dense.view(sizes), reduced


def _range(rows: torch.Tensor, reduced: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest element of each group, NaN if there is one, shaped to broadcast over ``rows``."""
    if reduced == [rows.dim() - 2] and rows.shape[-1] % _LANES and rows.shape[-2] >= 2 * _LANES:
        count, width = rows.shape[-2:]
        whole = count // _LANES * _LANES
        folded = rows[..., :whole, :].unflatten(-2, (whole // _LANES, _LANES)).flatten(-2)
        parts = [
            (part.amin(-2, keepdim=True), part.amax(-2, keepdim=True))
            for part in (folded, rows[..., whole:, :])
            if part.shape[-2]
        ]
        low, high = parts[0]
        low = low.unflatten(-1, (_LANES, width)).amin(-2)
        high = high.unflatten(-1, (_LANES, width)).amax(-2)
        if len(parts) == 2:
            low, high = torch.minimum(low, parts[1][0]), torch.maximum(high, parts[1][1])
        return low, high
    return rows.amin(reduced, keepdim=True), rows.amax(reduced, keepdim=True)


def _paired(codes: torch.Tensor) -> torch.Tensor:
    """Two 4-bit codes per byte, the first in the low half; an odd one out is followed by a zero."""
    if codes.numel() % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    pairs = codes.view(torch.int16)
    return (pairs | pairs >> 4).view(torch.uint8)[::2]


def _unpaired(body: torch.Tensor, numel: int) -> torch.Tensor:
    pairs = body.to(torch.int16)
    pairs = (pairs | pairs << 4) & 0x0F0F
    if numel % 2 and int(pairs[-1]) > 0x0F:
        raise CodecError("the unused half of the last byte is not zero")
    return pairs.view(torch.uint8)[:numel]
