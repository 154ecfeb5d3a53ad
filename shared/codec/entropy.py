"""The entropy stage: bytes to fewer bytes.  Works without the interpreter lock, safe in any thread.

A decoder is told the exact decoded size, allocates no more than that, and refuses a payload that decodes
to anything else.
"""

from __future__ import annotations

import threading

import lz4.block
import zstandard

from shared.codec.ids import Stage
from shared.errors import CodecError
from shared.wire.frame import Buffer

__all__ = ["compress", "decompress"]

_ZSTD_LEVEL = 1
_LZ4_MAX_BYTES = 0x7E00_0000
"""An lz4 block holds no more."""


class _Contexts(threading.local):
    """zstd's working memory, one set per thread: a context must not be shared, and is dear to make."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def compress(stage: Stage, data: Buffer) -> Buffer | None:
    """None when the stage does not make the bytes fewer; they should then be sent plain."""
    if stage is Stage.PLAIN:
        return None
    nbytes = memoryview(data).nbytes
    squeezed: bytes
    if stage is Stage.LZ4:
        if nbytes > _LZ4_MAX_BYTES:
            return None
        squeezed = lz4.block.compress(data, store_size=False)
    else:
        squeezed = _contexts.compressor.compress(data)
    return squeezed if len(squeezed) < nbytes else None


def decompress(stage: Stage, payload: Buffer, nbytes: int) -> Buffer:
    """Exactly ``nbytes`` bytes, or CodecError.  A plain payload is returned as it is."""
    size = memoryview(payload).nbytes
    if stage is Stage.PLAIN:
        if size != nbytes:
            raise CodecError(f"a plain payload of {size} bytes where the tensor's spec makes {nbytes}")
        return payload
    if size >= nbytes:
        raise CodecError(f"a compressed payload of {size} bytes is no smaller than its {nbytes} plain bytes")
    data = _lz4(payload, nbytes) if stage is Stage.LZ4 else _zstd(payload, nbytes)
    if len(data) != nbytes:
        raise CodecError(f"a payload decodes to {len(data)} bytes where the tensor's spec makes {nbytes}")
    return data


def _lz4(payload: Buffer, nbytes: int) -> bytes:
    if nbytes > _LZ4_MAX_BYTES:
        raise CodecError(f"an lz4 block cannot hold the {nbytes} bytes that the tensor's spec makes")
    try:
        data: bytes = lz4.block.decompress(payload, uncompressed_size=nbytes)
    except lz4.block.LZ4BlockError as error:
        raise CodecError(f"not an lz4 block of at most {nbytes} decoded bytes: {error}") from error
    return data


def _zstd(payload: Buffer, nbytes: int) -> bytes:
    try:
        # The library allocates what the frame claims, so the claim is compared first.
        claimed = zstandard.get_frame_parameters(payload).content_size
        if claimed != nbytes:
            raise CodecError(f"a zstd frame of {claimed} bytes where the tensor's spec makes {nbytes}")
        return _contexts.decompressor.decompress(payload, max_output_size=nbytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"not a zstd frame of {nbytes} decoded bytes: {error}") from error
