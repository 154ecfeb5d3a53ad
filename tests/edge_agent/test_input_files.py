"""Files of an application as inputs of a network."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent.input_files import read_input
from shared.errors import ConfigError


def write_wav(path: Path, samples: bytes, width: int, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(16_000)
        file.writeframes(samples)
    return path


def test_an_image_is_cropped_and_resized_to_what_the_network_takes(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = (10, 200, 30)
    Image.fromarray(picture).save(path)
    array = read_input(path, "uint8", (1, 3, 10, 10))
    assert (array.shape, array.dtype) == ((1, 3, 10, 10), np.dtype(np.uint8))
    assert array[0, :, 5, 5].tolist() == [10, 200, 30]
    assert read_input(path, "uint8", (1, 1, 8, 8)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("axes", [(3, 4), (1, 3, 4)])
def test_an_array_is_given_the_batch_dimension_where_it_lacks_it(
    tmp_path: Path, axes: tuple[int, ...]
) -> None:
    np.save(tmp_path / "a.npy", np.arange(12, dtype=np.int64).reshape(axes))
    array = read_input(tmp_path / "a.npy", "int64", (1, 3, 4))
    assert array.shape == (1, 3, 4)
    assert array.ravel().tolist() == list(range(12))


def test_an_array_of_python_objects_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(ConfigError, match="cannot read the array"):
        read_input(tmp_path / "a.npy", "int64", (1, 1))


@pytest.mark.parametrize(
    ("width", "samples"),
    [
        (1, bytes([128, 192, 0])),
        (2, np.array([0, 16384, -32768], "<i2").tobytes()),
        (4, np.array([0, 2**30, -(2**31)], "<i4").tobytes()),
    ],
)
def test_a_recording_is_scaled_and_filled_up_with_silence(tmp_path: Path, width: int, samples: bytes) -> None:
    path = write_wav(tmp_path / "a.wav", samples, width)
    array = read_input(path, "float32", (1, 5))
    assert (array.shape, array.dtype) == ((1, 5), np.dtype(np.float32))
    assert array[0].tolist() == [0.0, 0.5, -1.0, 0.0, 0.0]


def test_of_a_recording_the_first_channel_is_taken_from_the_start(tmp_path: Path) -> None:
    stereo = np.array([[16384, 0], [-16384, 0], [8192, 0]], "<i2").tobytes()
    path = write_wav(tmp_path / "a.wav", stereo, 2, channels=2)
    assert read_input(path, "float32", (1, 1, 2)).ravel().tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("a.png", "float32", (1, 3, 8, 8)),
        ("a.png", "uint8", (1, 10)),
        ("a.wav", "int64", (1, 10)),
        ("a.wav", "float32", (1, 3, 8, 8)),
        ("a.txt", "float32", (1, 10)),
        ("missing.npy", "float32", (1, 10)),
        ("missing.jpg", "uint8", (1, 3, 8, 8)),
        ("missing.wav", "float32", (1, 10)),
        ("broken.wav", "float32", (1, 10)),
    ],
)
def test_what_does_not_fit_is_refused_with_the_files_name(
    tmp_path: Path, name: str, dtype: str, shape: tuple[int, ...]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    write_wav(tmp_path / "a.wav", b"\0\0" * 10, 2)
    (tmp_path / "a.txt").write_text("1 2 3")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(ConfigError, match=name):
        read_input(tmp_path / name, dtype, shape)
