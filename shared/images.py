"""Image files as networks take them: uint8, channels x height x width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.errors import ConfigError

__all__ = ["IMAGE_SUFFIXES", "load_image"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def load_image(path: Path, height: int, width: int, *, grey: bool = False) -> npt.NDArray[np.uint8]:
    """The largest centred crop of the size's proportions, resized to it (bicubic).

    Raises ConfigError when the file is no image or Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ConfigError("reading images needs Pillow: pip install pillow") from error
    try:
        with Image.open(path) as picture:
            fitted = ImageOps.fit(
                picture.convert("L" if grey else "RGB"), (width, height), Image.Resampling.BICUBIC
            )
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot read the image {path}: {error}") from error
    pixels = np.asarray(fitted)
    return np.ascontiguousarray(pixels[np.newaxis] if grey else pixels.transpose(2, 0, 1))
