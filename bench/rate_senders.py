"""The ways of sending what crosses a cut that :mod:`bench.rate` compares, each with its settings."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from shared.codec import Codec, decode, encode
from shared.codec.transform import STEPS, Geometry, TransformTables, fit, is_fitted
from shared.codec.transform import decode as decode_transform
from shared.codec.transform import encode as encode_transform
from shared.tensor import DType, TensorSpec, order_from_strides

__all__ = ["IMAGE_CODECS", "Sent", "by_codec", "by_transform", "fit_all", "flat_geometry", "through_image"]


class Sent(NamedTuple):
    """One input's tensors as they arrive, and what they took."""

    nbytes: int
    tensors: list[torch.Tensor]


def by_codec(tensors: Sequence[torch.Tensor], codec: Codec) -> Sent:
    """Through the codec registry."""
    total, arrived = 0, []
    for slot, tensor in enumerate(tensors):
        header, payload = encode(tensor, codec, slot)
        total += memoryview(payload).nbytes
        arrived.append(decode(header, payload, spec_of(tensor)))
    return Sent(total, arrived)


def by_transform(
    tensors: Sequence[torch.Tensor], tables: Sequence[TransformTables | None], step: int, segments: int = 1,
    received: int | None = None,
) -> Sent:  # fmt: skip
    """Every tensor that has tables by the transform, at one absolute step size, the others exactly.

    ``received`` is how many of the segments arrive.
    """
    finest = max((each.finest for each in tables if each is not None), default=0)
    total, arrived = 0, []
    for tensor, each in zip(tensors, tables, strict=True):
        own = min(step + finest - each.finest, STEPS - 1) if each is not None else 0
        coded = None if each is None else encode_transform(tensor, each, own, segments)
        if each is None or coded is None:
            exact = by_codec([tensor], Codec.FLOAT32_ZSTD)
            total += exact.nbytes
            arrived += exact.tensors
            continue
        coded = coded[:received]
        total += sum(map(len, coded))
        arrived.append(decode_transform(coded, each, spec_of(tensor)).tensor)
    return Sent(total, arrived)


def fit_all(
    live: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor] | None,
    geometry: Callable[[torch.Tensor], Geometry | None] = lambda _: None,
) -> list[TransformTables | None]:
    """Tables for each tensor that the transform is for."""
    found: list[TransformTables | None] = []
    for index, tensor in enumerate(live):
        if is_fitted(DType.from_label(str(tensor.dtype)), tuple(tensor.shape)):
            slope = None if gradients is None else gradients[index]
            found.append(fit(tensor, slope, geometry(tensor)))
        else:
            found.append(None)
    return found


def flat_geometry(tensor: torch.Tensor) -> Geometry:
    """Components of the features alone: no frequencies."""
    sample = tuple(tensor.shape[1:])
    return Geometry(sample, 0 if len(sample) != 2 else 1, (1, 1))


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(
        "tensor",
        DType.from_label(str(tensor.dtype)),
        tuple(tensor.shape),
        order_from_strides(tensor.stride()),
    )


def through_image(tensors: Sequence[torch.Tensor], form: str, options: dict[str, object]) -> Sent:
    """The one uint8 image, 1 x 3 x height x width, through a file in one of Pillow's formats."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(tensors[0][0].permute(1, 2, 0).numpy()).save(file, form, **options)
    with Image.open(file) as picture:
        pixels = np.array(picture.convert("RGB"))
    return Sent(len(file.getvalue()), [torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()])


def _jpeg(subsampling: str) -> Callable[[int], dict[str, object]]:
    # Huffman tables of the image's own and progressive scans: what Pillow's libjpeg can do best.
    return lambda quality: {
        "quality": quality,
        "subsampling": subsampling,
        "optimize": True,
        "progressive": True,
    }


IMAGE_CODECS: dict[str, tuple[str, Iterable[int], Callable[[int], dict[str, object]]]] = {
    "JPEG 4:2:0": ("JPEG", (40, 60, 75, 85, 90, 93, 95, 97, 99), _jpeg("4:2:0")),
    "JPEG 4:4:4": ("JPEG", (40, 60, 75, 85, 90, 93, 95, 97, 99), _jpeg("4:4:4")),
    "WebP": ("WEBP", (40, 60, 75, 85, 90, 95, 98, 100), lambda quality: {"quality": quality, "method": 6}),
    "AVIF": (
        "AVIF",
        (40, 55, 65, 75, 85, 92, 97),
        lambda quality: {"quality": quality, "subsampling": "4:4:4", "speed": 6, "max_threads": 1},
    ),
}
