"""Which bytes a codec makes of a tensor, known from dtype, shape and codec alone.

Both sides compute this before anything is allocated.  The transform's bytes depend on the values, and are
fewer than those of the exact elements, of which this then speaks.

A quantised tensor has groups of elements with one scale and one zero point each.  Dimension 0 is taken for
the samples of a batch, and no group spans two samples: what is decoded for one request does not depend on its
neighbours in a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.codec.ids import Codec, Form
from shared.tensor import DType, Shape, TensorSpec

__all__ = ["GROUP_HEADER_BYTES", "MIN_GROUP", "Layout", "layout_of", "max_payload_bytes", "raw_bytes"]

GROUP_HEADER_BYTES = 5
"""float32 scale and one byte of zero point."""

MIN_GROUP = 8
"""Smaller groups would cost more in scales than they save."""


@dataclass(frozen=True, slots=True)
class Layout:
    """``form`` is the one that is really used; ``group_dims`` are the dimensions that tell groups apart.

    ``nbytes`` is the exact size before the entropy stage.
    """

    form: Form
    numel: int
    nbytes: int
    group_dims: Shape = ()
    groups: int = 0


def layout_of(dtype: DType, shape: Shape, codec: Codec) -> Layout:
    """Integers, booleans and tensors of few elements per sample are written exactly under every codec."""
    numel = math.prod(shape)
    form = codec.form if dtype.is_float and numel else Form.EXACT
    if form is Form.HALF and dtype.itemsize > 2:
        return Layout(form, numel, 2 * numel)
    if form in (Form.UINT8, Form.INT4):
        group_dims = _group_dims(shape, numel)
        if group_dims:
            groups = math.prod(shape[dim] for dim in group_dims)
            code_bytes = numel if form is Form.UINT8 else (numel + 1) // 2
            return Layout(form, numel, GROUP_HEADER_BYTES * groups + code_bytes, group_dims, groups)
    return Layout(Form.EXACT, numel, dtype.itemsize * numel)


def raw_bytes(spec: TensorSpec, codec: Codec) -> int:
    """The payload's size before the entropy stage; for a plain codec the payload's size."""
    return layout_of(spec.dtype, spec.shape, codec).nbytes


def max_payload_bytes(spec: TensorSpec, codec: Codec) -> int:
    """What :func:`shared.codec.encode` never exceeds for this codec, whatever the values.

    An entropy stage that does not pay is dropped; values that a quantiser or the transform cannot hold are
    sent exactly.
    """
    if codec.form in (Form.UINT8, Form.INT4) or codec.form.is_transform:
        return spec.nbytes
    return raw_bytes(spec, codec)


def _group_dims(shape: Shape, numel: int) -> Shape:
    """Per sample and channel of a map, per sample and feature of a sequence, else per sample."""
    if len(shape) >= 3:
        feature = 1 if len(shape) >= 4 else 2
        if numel // (shape[0] * shape[feature]) >= MIN_GROUP:
            return (0, feature)
    if shape and numel // shape[0] >= MIN_GROUP:
        return (0,)
    return ()
