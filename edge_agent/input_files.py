"""Files as networks take them: an image, a recording, or an array.  numpy only, no torch."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import ConfigError
from shared.images import IMAGE_SUFFIXES, load_image

__all__ = ["read_input"]

_SAMPLES: dict[int, tuple[str, float, float]] = {
    1: ("u1", 128.0, 128.0),  # of one byte they are unsigned
    2: ("<i2", 0.0, 32768.0),
    4: ("<i4", 0.0, 2147483648.0),
}
"""By bytes of a sample in a .wav file: numpy's type, zero, full scale."""


def read_input(path: Path, dtype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """The file as one input of a network that takes ``shape`` (batch first) of ``dtype``.

    Images are cropped to the centre and resized, as uint8 in channels x height x width.  Of a recording the
    first channel is cut from its start, or filled up with silence, to the last dimension, in -1 to 1.  A
    .npy array is taken as it is; one without the batch dimension is given it.

    Raises ConfigError for a file that cannot be read, and for one of a kind that the network does not take.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _array(path, len(shape))
    if suffix in IMAGE_SUFFIXES:
        if dtype != "uint8" or len(shape) != 4 or shape[1] not in (1, 3):
            raise ConfigError(f"{path} is an image, and the network takes {_form(dtype, shape)}; give a .npy")
        _, channels, height, width = shape
        return load_image(path, height, width, grey=channels == 1)[np.newaxis]
    if suffix == ".wav":
        if dtype != "float32" or not shape or any(size != 1 for size in shape[:-1]):
            raise ConfigError(
                f"{path} is a recording, and the network takes {_form(dtype, shape)}; give a .npy"
            )
        return _recording(path, shape[-1]).reshape(shape)
    known = ", ".join(sorted({".npy", ".wav"} | IMAGE_SUFFIXES))
    raise ConfigError(f"{path}: files of this kind are not read; those are: {known}")


def _array(path: Path, rank: int) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the array {path}: {error}") from error
    return array[np.newaxis] if array.ndim == rank - 1 else array


def _recording(path: Path, length: int) -> npt.NDArray[np.float32]:
    try:
        with wave.open(str(path)) as recording:
            channels, width = recording.getnchannels(), recording.getsampwidth()
            data = recording.readframes(length)
    except (OSError, EOFError, wave.Error) as error:
        raise ConfigError(f"cannot read the recording {path}: {error}") from error
    if width not in _SAMPLES:
        raise ConfigError(f"{path} has samples of {width} bytes; convert it to 16 bits")
    kind, zero, scale = _SAMPLES[width]
    samples = np.zeros(length, np.float32)
    heard = np.frombuffer(data, kind)[::channels]
    samples[: len(heard)] = (heard.astype(np.float32) - zero) / scale
    return samples


def _form(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype} of {' x '.join(map(str, shape))}"
