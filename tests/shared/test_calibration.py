"""Calibration inputs come from a folder, a factory or the example, and fit the network or say why not."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from shared.calibration import calibrate
from shared.config import CalibrationConfig
from shared.errors import ConfigError
from shared.graph.capture import capture
from shared.images import load_image
from shared.models import Model


class Picture(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float().mean(dim=(2, 3))


class Pair(nn.Module):
    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return x + tokens


@pytest.fixture(scope="module")
def picture() -> Model:
    example = (torch.zeros(1, 3, 8, 6, dtype=torch.uint8),)
    return Model(capture(Picture().eval(), example, name="picture"), None, (example, {}), "image")


@pytest.fixture(scope="module")
def pair() -> Model:
    example = (torch.full((1, 4), 2.0), torch.tensor([[3, 5, 7, 9]]))
    return Model(capture(Pair().eval(), example, name="pair"), None, (example, {}), "tensor")


def _factory(monkeypatch: pytest.MonkeyPatch, made: Any) -> CalibrationConfig:
    module = types.ModuleType("calibration_of_a_test")
    module.inputs = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return CalibrationConfig(factory="calibration_of_a_test:inputs", samples=2)


def test_a_folder_gives_its_images_and_arrays_in_order(picture: Model, tmp_path: Path) -> None:
    wide = np.zeros((8, 20, 3), np.uint8)
    wide[:, 7:13] = (10, 20, 30)
    Image.fromarray(wide).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.full((3, 8, 6), 7, np.uint8))
    (tmp_path / "notes.txt").write_text("not an input")
    found = calibrate(picture, CalibrationConfig(folder=tmp_path))
    assert not found.synthetic
    first, second = (sample[0] for sample in found.samples)
    assert first.shape == second.shape == (1, 3, 8, 6)
    assert first[0, :, 4, 3].tolist() == [10, 20, 30]
    assert second.unique().tolist() == [7]


def test_the_name_follows_the_content(picture: Model, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 6), np.uint8))
    config = CalibrationConfig(folder=tmp_path)
    before = calibrate(picture, config).name
    assert calibrate(picture, config).name == before
    np.save(tmp_path / "a.npy", np.ones((3, 8, 6), np.uint8))
    assert calibrate(picture, config).name != before


def test_without_inputs_they_are_made_up_and_it_says_so(picture: Model, pair: Model) -> None:
    images = calibrate(picture, CalibrationConfig(samples=3))
    assert images.synthetic
    assert len(images.samples) == 3
    assert not torch.equal(images.samples[0][0], images.samples[1][0])
    numbers, tokens = calibrate(pair, CalibrationConfig(samples=1)).samples[0]
    assert torch.equal(numbers, torch.full((1, 4), 2.0)), "a constant example has no spread"
    assert set(tokens.flatten().tolist()) <= {3, 5, 7, 9}


def test_a_factory_gives_calls(pair: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [(torch.ones(1, 4), torch.zeros(1, 4, dtype=torch.int64))] * 3
    found = calibrate(pair, _factory(monkeypatch, lambda: calls))
    assert len(found.samples) == 2
    assert not found.synthetic


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda: [], "no call"),
        (lambda: [torch.ones(1, 4)], "call 0 .* must be a tuple"),
        (lambda: [(torch.ones(1, 4),)], "call 0"),
        (lambda: [(torch.ones(1, 5), torch.zeros(1, 4, dtype=torch.int64))], "does not fit"),
        (lambda: [(torch.ones(2, 4), torch.zeros(2, 4, dtype=torch.int64))], "batch size 2"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_factory_that_does_not_fit_is_named(
    pair: Model, monkeypatch: pytest.MonkeyPatch, made: Any, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        calibrate(pair, _factory(monkeypatch, made))


def test_a_folder_that_does_not_fit_is_named(picture: Model, pair: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a directory"):
        calibrate(picture, CalibrationConfig(folder=tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"holds no file of \.bmp"):
        calibrate(picture, CalibrationConfig(folder=tmp_path))
    with pytest.raises(ConfigError, match="takes 2 tensors"):
        calibrate(pair, CalibrationConfig(folder=tmp_path))
    np.save(tmp_path / "a.npy", np.zeros((3, 9, 6), np.uint8))
    with pytest.raises(ConfigError, match=r"a\.npy does not fit"):
        calibrate(picture, CalibrationConfig(folder=tmp_path))
    (tmp_path / "a.npy").write_bytes(b"not an array")
    with pytest.raises(ConfigError, match=r"a\.npy"):
        calibrate(picture, CalibrationConfig(folder=tmp_path))
    (tmp_path / "a.npy").unlink()
    (tmp_path / "b.png").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"b\.png"):
        calibrate(picture, CalibrationConfig(folder=tmp_path))


def test_an_array_of_objects_is_never_unpickled(picture: Model, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"a\.npy"):
        calibrate(picture, CalibrationConfig(folder=tmp_path))


def test_a_grey_image_has_one_channel(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 2, 2, grey=True).tolist() == [[[9, 9], [9, 9]]]
