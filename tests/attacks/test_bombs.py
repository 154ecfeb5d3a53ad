"""Attack: a few bytes of lz4 or zstd that stand for very many, true or claimed."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import lz4.block
import msgspec
import pytest
import zstandard

from shared.codec import Codec, decode
from shared.errors import CodecError
from shared.tensor import DType, TensorSpec
from shared.wire.messages import TensorHeader
from tests.attacks.harness import MIB, Attack, joined, peak_of, try_all

SPEC = TensorSpec("t", DType.FLOAT32, (1, 16, 32, 32), (0, 1, 2, 3))
BIG = 64 * MIB


def header(codec: Codec, payload: bytes, spec: TensorSpec = SPEC) -> TensorHeader:
    return TensorHeader(
        slot=0,
        dtype=spec.dtype,
        codec=codec,
        shape=list(spec.shape),
        order=list(spec.order),
        payload_bytes=len(payload),
    )


def zstd_frame(content_size: int, window_log: int = 10, body: bytes = b"\x01\x00\x00") -> bytes:
    """A frame header that says what one likes (RFC 8878, 3.1.1.1): window and content of any size."""
    return struct.pack("<IBB", 0xFD2FB528, 0b1100_0000, (window_log - 10) << 3) + struct.pack(
        "<Q", content_size
    ) + body  # fmt: skip


def bombs() -> dict[str, tuple[Codec, bytes]]:
    zeros = bytes(BIG)
    zstd = zstandard.ZstdCompressor(level=19)
    rle = b"\x02\xff\xff" + b"\x00"  # one block, run-length, as long as a block may be
    return {
        "lz4 of 64 MiB": (Codec.FLOAT32_LZ4, lz4.block.compress(zeros, store_size=False)),
        "lz4 with a size in front": (Codec.FLOAT32_LZ4, struct.pack("<I", 2**31 - 1) + bytes(50)),
        "lz4 that copies itself on": (Codec.FLOAT32_LZ4, b"\x1f\x00\x01\x00" + b"\xff" * 60_000 + b"\x00"),
        "lz4 that copies from before its start": (Codec.FLOAT32_LZ4, b"\x1f\x00\xff\xff" + b"\xff" * 100),
        "zstd of 64 MiB": (Codec.FLOAT32_ZSTD, zstd.compress(zeros)),
        "zstd without a size": (
            Codec.FLOAT32_ZSTD,
            zstandard.ZstdCompressor(write_content_size=False).compress(zeros),
        ),
        "zstd in zstd": (Codec.FLOAT32_ZSTD, zstd.compress(zstd.compress(zeros))),
        "zstd that claims 2**60": (Codec.FLOAT32_ZSTD, zstd_frame(2**60)),
        "zstd that claims the right size": (Codec.FLOAT32_ZSTD, zstd_frame(SPEC.nbytes)),
        "zstd with a window of 2 GiB": (Codec.FLOAT32_ZSTD, zstd_frame(SPEC.nbytes, window_log=31)),
        "zstd with a window of 3.75 TiB": (Codec.FLOAT32_ZSTD, zstd_frame(SPEC.nbytes, window_log=41)),
        "zstd that runs on": (Codec.FLOAT32_ZSTD, zstd_frame(SPEC.nbytes, 20, rle * 5000)),
        "two zstd frames": (Codec.FLOAT32_ZSTD, zstd.compress(bytes(SPEC.nbytes)) * 2),
        "zstd and more behind it": (Codec.FLOAT32_ZSTD, zstd.compress(bytes(SPEC.nbytes)) + bytes(100)),
    }  # fmt: skip


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_the_memory_of_the_tensor_that_it_should_be(name: str) -> None:
    codec, payload = BOMBS[name]
    with pytest.raises(CodecError):
        decode(header(codec, payload), payload, SPEC)
    resident = peak_of(lambda: _refused(header(codec, payload), payload))
    assert resident < 2 * SPEC.nbytes + MIB


def _refused(claimed: TensorHeader, payload: bytes) -> None:
    with pytest.raises(CodecError):
        decode(claimed, payload, SPEC)


def test_a_card_of_megabytes_is_not_what_a_bomb_is_measured_by() -> None:
    """Even where the network does want 64 MiB, no more than twice that is taken."""
    spec = TensorSpec("t", DType.FLOAT32, (1, 16, 1024, 1024), (0, 1, 2, 3))
    codec, payload = BOMBS["zstd of 64 MiB"]
    peak = peak_of(lambda: decode(header(codec, payload, spec), payload, spec))
    assert peak < 2 * spec.nbytes + MIB


def bomb_payloads(step: int) -> Iterator[bytes]:
    for codec, payload in itertools.islice(BOMBS.values(), 0, None, step):
        for form in (0x10, 0x20, 0x30, 0x40):
            squeezed = Codec(form | codec & 0xF)
            claimed = header(squeezed, payload)
            yield joined([msgspec.msgpack.encode(claimed), payload])
            for cut in (1, 10, len(payload) // 2):
                yield joined([msgspec.msgpack.encode(header(squeezed, payload[:-cut])), payload[:-cut]])


ATTACK = Attack("lz4 and zstd bombs", "payload", bomb_payloads, 3 * MIB)
ATTACKS = (ATTACK,)


def test_no_bomb_crashes_or_bloats_the_decoder() -> None:
    tried = try_all(ATTACK)
    assert tried.inputs == 16 * len(BOMBS)
    assert tried.peak_bytes < ATTACK.bound_bytes
