import threading

import lz4.block
import pytest
import zstandard

from shared.codec.entropy import compress, decompress
from shared.codec.ids import Stage
from shared.errors import CodecError

DATA = bytes(range(64)) * 100
SQUEEZING = [Stage.LZ4, Stage.ZSTD]


@pytest.mark.parametrize("stage", SQUEEZING)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_is_squeezed_comes_back(stage, kind):
    squeezed = compress(stage, kind(DATA))
    assert squeezed is not None
    assert len(squeezed) < 600
    assert decompress(stage, kind(squeezed), len(DATA)) == DATA


@pytest.mark.parametrize("stage", SQUEEZING)
def test_a_stage_that_does_not_pay_says_so(stage):
    assert compress(stage, bytes(range(256))) is None
    assert compress(stage, b"") is None


def test_plain_bytes_are_passed_on():
    assert compress(Stage.PLAIN, DATA) is None
    assert decompress(Stage.PLAIN, DATA, len(DATA)) is DATA
    with pytest.raises(CodecError, match="a plain payload of 6400 bytes where the tensor's spec makes 6401"):
        decompress(Stage.PLAIN, DATA, len(DATA) + 1)


@pytest.mark.parametrize("stage", SQUEEZING)
@pytest.mark.parametrize("nbytes", [6399, 6401, 65536, 2**40])
def test_another_size_than_the_spec_makes(stage, nbytes):
    with pytest.raises(CodecError):
        decompress(stage, compress(stage, DATA), nbytes)


@pytest.mark.parametrize("stage", SQUEEZING)
def test_trailing_bytes(stage):
    squeezed = compress(stage, DATA)
    for garbage in (b"\x00", b"\x10abc", squeezed):
        with pytest.raises(CodecError):
            decompress(stage, squeezed + garbage, len(DATA))


@pytest.mark.parametrize("stage", SQUEEZING)
def test_truncation_at_every_byte(stage):
    squeezed = compress(stage, DATA)
    for size in range(len(squeezed)):
        with pytest.raises(CodecError):
            decompress(stage, squeezed[:size], len(DATA))


@pytest.mark.parametrize("stage", SQUEEZING)
def test_a_compressed_payload_must_be_smaller_than_plain(stage):
    noise = bytes(range(256))
    body = lz4.block.compress(noise, store_size=False) if stage is Stage.LZ4 else zstandard.compress(noise)
    with pytest.raises(CodecError, match="no smaller than its 256 plain bytes"):
        decompress(stage, body, len(noise))


def test_not_even_of_the_same_size():
    data = bytes(range(100, 104)) * 2 + bytes(range(8))
    body = lz4.block.compress(data, store_size=False)
    assert len(body) == len(data) == 16
    assert compress(Stage.LZ4, data) is None
    with pytest.raises(CodecError, match="no smaller than its 16 plain bytes"):
        decompress(Stage.LZ4, body, 16)


def test_a_zstd_frame_that_hides_or_lies_about_its_size():
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(DATA)
    with pytest.raises(CodecError, match="a zstd frame of"):
        decompress(Stage.ZSTD, hidden, len(DATA))
    bomb = zstandard.compress(bytes(2**24))
    with pytest.raises(CodecError, match="a zstd frame of 16777216 bytes where the tensor's spec makes 6400"):
        decompress(Stage.ZSTD, bomb, len(DATA))
    # The content size field of a small frame, set to what the spec makes.
    lying = bytearray(zstandard.compress(bytes(200)))
    assert lying[5] == 200
    lying[5] = 201
    with pytest.raises(CodecError):
        decompress(Stage.ZSTD, bytes(lying), 201)


def test_zstd_dictionaries_and_skippable_frames_are_not_used():
    dictionary = zstandard.ZstdCompressionDict(DATA[:128])
    framed = zstandard.ZstdCompressor(dict_data=dictionary).compress(DATA)
    skippable = (0x184D2A50).to_bytes(4, "little") + (100).to_bytes(4, "little") + bytes(100)
    for payload, nbytes in ((framed[:-1] + b"\x00", len(DATA)), (skippable, 1000), (skippable, 200)):
        with pytest.raises(CodecError):
            decompress(Stage.ZSTD, payload, nbytes)


def test_threads_do_not_share_contexts():
    failures = []

    def work(fill):
        data = bytes([fill]) * 200_000
        for _ in range(20):
            if decompress(Stage.ZSTD, compress(Stage.ZSTD, data), len(data)) != data:
                failures.append(fill)

    threads = [threading.Thread(target=work, args=(fill,)) for fill in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
