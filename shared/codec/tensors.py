"""Encode and decode torch tensors.  Both are safe in any thread and keep no state.

What a codec does to values, by the dtype of the tensor:

- integers and booleans: nothing, under every codec;
- ``float32``: nothing, whatever the dtype (a float64 tensor travels in 8 bytes an element);
- ``float16``: rounded to float16, finite values beyond 65504 saturate, NaN and infinities pass;
  float16 and bfloat16 tensors are left alone;
- ``uint8`` and ``int4``: within half a step of the group's range (including zero) / 255 or / 15; zero is
  exact; magnitudes beyond 2**126 saturate.  A tensor that holds NaN or an infinity is sent exactly
  instead, and so is one with fewer than 8 elements per sample;
- ``transform-1`` to ``transform-8``: as tables fitted to the tensor say (:mod:`shared.codec.transform`), with
  an error that grows by 1.7 from one to the next.  A tensor without tables, or one that they cannot make
  smaller, is sent exactly instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from shared.codec.elements import CODERS, exact_bytes
from shared.codec.entropy import compress, decompress
from shared.codec.ids import Codec
from shared.codec.layout import layout_of
from shared.errors import CodecError
from shared.tensor import DType, Shape, TensorSpec, order_from_strides, strides_from_order
from shared.wire.frame import Buffer
from shared.wire.messages import TensorHeader

if TYPE_CHECKING:
    from shared.codec.transform import TransformTables

__all__ = ["decode", "encode"]

_LABELS = ", ".join(dtype.label for dtype in DType)
_TORCH = {dtype: getattr(torch, dtype.label) for dtype in DType}
_DTYPES = {torch_dtype: dtype for dtype, torch_dtype in _TORCH.items()}


def encode(
    tensor: torch.Tensor, codec: Codec, slot: int, tables: TransformTables | None = None
) -> tuple[TensorHeader, Buffer]:
    """The header and the payload of one tensor, in at most ``max_payload_bytes(spec, codec)`` bytes.

    The header names the codec that was really used: the entropy stage is dropped where it gains nothing,
    and values that a quantiser cannot hold are sent exactly.  ``tables`` are the tensor's own, for the
    transform.  The memory order of a dense tensor is kept;
    another one (a slice, an expanded tensor) is compacted in the same order.  The payload may alias the
    tensor, which must not be written to until it is sent.

    Raises CodecError for a dtype that cannot travel.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise CodecError(f"a tensor of {tensor.dtype} cannot travel; convert it to one of {_LABELS}")
    tensor = tensor.detach().cpu()
    shape = tuple(tensor.shape)
    order = order_from_strides(tensor.stride())
    if codec.form.is_transform:
        coded = None if tables is None else _transformed(tensor, codec, tables)
        if coded is not None:
            return _header(slot, dtype, codec, shape, order, coded), coded
        codec = codec.lossless
    dense = tensor.permute(order).contiguous()
    layout = layout_of(dtype, shape, codec)
    raw = CODERS[layout.form].write(dense, order, layout)
    if raw is None:
        codec = codec.lossless
        raw = exact_bytes(dense)
    payload: Buffer = raw.numpy().data
    squeezed = compress(codec.stage, payload)
    if squeezed is None:
        codec = codec.plain
    else:
        payload = squeezed
    return _header(slot, dtype, codec, shape, order, payload), payload


def decode(
    header: TensorHeader,
    payload: Buffer,
    spec: TensorSpec,
    tables: TransformTables | None = None,
    *,
    share: bool = False,
) -> torch.Tensor:
    """A new CPU tensor with the spec's dtype and shape and the strides of the header's order.

    Nothing is allocated before header, payload and spec agree, and then no more than twice the spec's
    size, or for the transform eight times what its elements take as float32.  The tensor owns its
    memory: the payload may be released, the tensor may be written to.  With ``share`` it may instead be a
    view of the payload, which it keeps: neither may be written to, and its memory may be less aligned than
    torch's own, on which kernels may round differently.

    Raises CodecError when they disagree or the payload is damaged.
    """
    try:
        codec = Codec(header.codec)
    except ValueError as error:
        raise CodecError(f"slot {header.slot}: codec {header.codec:#04x} is not known here") from error
    shape, order = tuple(header.shape), tuple(header.order)
    if header.dtype != spec.dtype or shape != spec.shape:
        raise CodecError(
            f"slot {header.slot} is announced as dtype {header.dtype} {shape}; "
            f"the model's {spec.name} is dtype {int(spec.dtype)} {spec.shape}"
        )
    if sorted(order) != list(range(len(shape))):
        raise CodecError(f"slot {header.slot}: order {order} is no permutation of {len(shape)}")
    if memoryview(payload).nbytes != header.payload_bytes:
        raise CodecError(f"slot {header.slot}: the payload is not of the announced size")
    if codec.form.is_transform:
        return _restored(payload, codec, replace(spec, order=order), tables)
    layout = layout_of(spec.dtype, shape, codec)
    raw = decompress(codec.stage, payload, layout.nbytes)
    flat = CODERS[layout.form].read(raw, shape, order, layout, _TORCH[spec.dtype], share)
    return flat.as_strided(shape, strides_from_order(shape, order))


def _header(
    slot: int, dtype: DType, codec: Codec, shape: Shape, order: Shape, payload: Buffer
) -> TensorHeader:
    return TensorHeader(
        slot=slot,
        dtype=dtype,
        codec=codec,
        shape=list(shape),
        order=list(order),
        payload_bytes=memoryview(payload).nbytes,
    )


def _transformed(tensor: torch.Tensor, codec: Codec, tables: TransformTables) -> bytes | None:
    """None where the tables are not of such a tensor, or cannot make it smaller."""
    from shared.codec import transform

    spec = TensorSpec("tensor", _DTYPES[tensor.dtype], tuple(tensor.shape), tuple(range(tensor.dim())))
    if not spec.dtype.is_float or not transform.is_coded_by(tables, spec):
        return None
    segments = transform.encode(tensor, tables, codec.form.step)
    packed = None if segments is None else transform.pack(segments)
    return packed if packed is not None and len(packed) < spec.nbytes else None


def _restored(
    payload: Buffer, codec: Codec, spec: TensorSpec, tables: TransformTables | None
) -> torch.Tensor:
    from shared.codec import transform

    if tables is None:
        raise CodecError(f"{spec.name} arrived in {codec.label}; this side has no tables to decode it with")
    if memoryview(payload).nbytes >= spec.nbytes:
        raise CodecError(f"a payload of {memoryview(payload).nbytes} bytes is no smaller than its elements")
    decoded = transform.decode(transform.unpack(payload), tables, spec)
    if decoded.step != codec.form.step or not decoded.is_whole:
        raise CodecError(
            f"{spec.name} arrived in {codec.label} but at step {decoded.step}, "
            f"{decoded.segments} of {decoded.of} segments"
        )
    return decoded.tensor
