"""numpy arrays to exact payloads and back, without torch: for an application's side of the local socket."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.codec.ids import Codec
from shared.errors import CodecError, InputMismatchError
from shared.tensor import DType, order_from_strides
from shared.wire.frame import Buffer
from shared.wire.messages import TensorHeader

__all__ = ["pack_array", "unpack_array"]

_NUMPY = {dtype: np.dtype(dtype.label) for dtype in DType if dtype is not DType.BFLOAT16}


def pack_array(array: NDArray[np.generic], slot: int) -> tuple[TensorHeader, memoryview]:
    """The header and the bytes of an array, which are a view of it where it is dense.

    Raises InputMismatchError for a dtype that cannot travel.
    """
    dtype = next((dtype for dtype, known in _NUMPY.items() if known == array.dtype.newbyteorder("=")), None)
    if dtype is None:
        names = ", ".join(known.name for known in _NUMPY.values())
        raise InputMismatchError(f"an array of {array.dtype} cannot be sent; convert it to one of {names}")
    array = array.astype(_NUMPY[dtype], copy=False)
    order = order_from_strides(array.strides)
    dense = np.ascontiguousarray(array.transpose(order))
    data = dense.reshape(-1).view(np.uint8).data
    header = TensorHeader(
        slot=slot,
        dtype=dtype,
        codec=Codec.FLOAT32,
        shape=list(array.shape),
        order=list(order),
        payload_bytes=data.nbytes,
    )
    return header, data


def unpack_array(header: TensorHeader, payload: Buffer) -> NDArray[np.generic]:
    """A new writable array; bfloat16, which numpy lacks, arrives as the float32 of the same value.

    Raises CodecError when header and payload disagree.
    """
    if header.codec != Codec.FLOAT32:
        raise CodecError(f"slot {header.slot}: codec {header.codec:#04x} where only plain elements are read")
    try:
        dtype = DType(header.dtype)
    except ValueError as error:
        raise CodecError(f"slot {header.slot}: dtype {header.dtype} is not in the table") from error
    shape, order = header.shape, header.order
    if sorted(order) != list(range(len(shape))):
        raise CodecError(f"slot {header.slot}: order {order} is no permutation of {len(shape)}")
    numel = 1
    for size in shape:
        numel *= size
    size = memoryview(payload).nbytes
    if size != numel * dtype.itemsize:
        raise CodecError(f"slot {header.slot}: {size} bytes for {numel} elements of {dtype.label}")
    data = np.frombuffer(payload, dtype=np.uint8)
    flat: NDArray[np.generic]
    if dtype is DType.BFLOAT16:
        flat = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif dtype is DType.BOOL:
        flat = data != 0
    else:
        flat = data.copy().view(_NUMPY[dtype])
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return flat.reshape([shape[dim] for dim in order]).transpose(inverse)
