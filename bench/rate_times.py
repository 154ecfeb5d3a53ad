"""What coding takes, on one core: part of :mod:`bench.rate`."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch

from bench.contract import Bench
from bench.rate_senders import spec_of
from bench.rate_subjects import photographs
from shared import zoo
from shared.codec import Codec, decode, encode
from shared.codec.transform import TransformTables, fit, quantise
from shared.codec.transform import decode as decode_transform
from shared.codec.transform import encode as encode_transform

__all__ = ["measure_times"]

_TENSORS = {"40x28x28": (224, 5, 3.0), "1 MB, 16x128x128": (256, 1, 12.0)}
"""Side of the image, blocks of EfficientNet-Lite0 below the cut, and what encode and decode may take."""

_STEPS = (0, 6, 9, 12, 15, 18)
_PROMISED_STEP = 12


def measure_times(bench: Bench) -> None:
    """Add a row for each tensor, step and codec: milliseconds of one thread, median, without gradients."""
    network = zoo.build("efficientnet-lite0").module
    repeats = 5 if bench.quick else 40
    for label, (side, blocks, limit_ms) in _TENSORS.items():
        with torch.inference_mode():
            images = _images(side)
            live = network.blocks[:blocks](network.stem(network.normalise(images))).clone()
        tables = fit(live[1:])
        one = live[:1].clone()
        spec = spec_of(one)
        for step in _STEPS:
            coded = encode_transform(one, tables, step)
            assert coded is not None
            encode_ms, decode_ms = _paired_ms(
                functools.partial(encode_transform, one, tables, step),
                functools.partial(decode_transform, coded, tables, spec),
                repeats,
            )
            bench.row(
                kind="time",
                tensor=label,
                sent="transform",
                step=step,
                tensor_bytes=spec.nbytes,
                payload_bytes=len(coded[0]),
                nonzero_percent=100 * _nonzero_share(one, tables, step),
                encode_ms=encode_ms,
                decode_ms=decode_ms,
                limit_ms=limit_ms if step == _PROMISED_STEP else None,
            )
        header, payload = encode(one, Codec.UINT8_ZSTD, 0)
        encode_ms, decode_ms = _paired_ms(
            functools.partial(encode, one, Codec.UINT8_ZSTD, 0),
            functools.partial(decode, header, payload, spec),
            repeats,
        )
        bench.row(
            kind="time", tensor=label, sent=Codec.UINT8_ZSTD.label, step=None, tensor_bytes=spec.nbytes,
            payload_bytes=memoryview(payload).nbytes, nonzero_percent=None, encode_ms=encode_ms,
            decode_ms=decode_ms, limit_ms=None,
        )  # fmt: skip


def _nonzero_share(tensor: torch.Tensor, tables: TransformTables, step: int) -> float:
    symbols = quantise(tensor, tables, step)
    assert symbols is not None
    return float((symbols != 0).mean())


def _images(side: int) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    found = []
    for picture in photographs().values():
        assert isinstance(picture, Image.Image)
        square = picture.resize((side, side), Image.Resampling.BICUBIC)
        found.append(torch.from_numpy(np.array(square)).permute(2, 0, 1))
    return torch.stack(found)


def _paired_ms(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[float, float]:
    samples: list[tuple[float, float]] = []
    for number in range(repeats + 2):
        began = time.thread_time()
        first()
        between = time.thread_time()
        second()
        ended = time.thread_time()
        if number >= 2:
            samples.append((1e3 * (between - began), 1e3 * (ended - between)))
    encode_ms, decode_ms = zip(*samples, strict=True)
    return statistics.median(encode_ms), statistics.median(decode_ms)
