from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pytest

from bench.photos import load_digits, load_photos
from shared.errors import ConfigError


def test_photos_are_uint8_images_of_the_size_asked_for() -> None:
    photos = load_photos(size=64)
    assert len(photos) == len({photo.name for photo in photos}) == 11
    assert {photo.name.split()[0] for photo in photos} == {"grace_hopper.jpg", "china.jpg", "flower.jpg"}
    for photo in photos:
        assert photo.image.shape == (1, 3, 64, 64)
        assert photo.image.dtype == np.uint8
        assert photo.image.flags.c_contiguous
        assert photo.image.std() > 20
    for one, two in pairwise(photos):
        assert not np.array_equal(one.image, two.image)
    again = load_photos(size=64)
    assert all(np.array_equal(one.image, two.image) for one, two in zip(photos, again, strict=True))


def test_a_centre_crop_keeps_what_is_in_the_centre() -> None:
    """The flower is orange-red in the middle of its picture, and dark green leaves are at the border."""
    flower = next(photo for photo in load_photos(64) if photo.name == "flower.jpg").image[0].astype(int)
    red, green, _ = flower[:, 24:40, 24:40].mean((1, 2))
    assert red > green + 50


def test_digits_look_like_mnist() -> None:
    digits = load_digits(10)
    assert [digit.name for digit in digits] == [f"digit {label}" for label in range(10)]
    for digit in digits:
        assert digit.image.shape == (1, 1, 28, 28)
        assert digit.image.dtype == np.uint8
        assert digit.image[0, 0, :4].max() == digit.image[0, 0, :, -4:].max() == 0
        assert digit.image.max() > 200


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"sklearn.*pip install 'suture\[demo\]'"):
        load_photos()
    with pytest.raises(ConfigError, match=r"sklearn.*pip install 'suture\[demo\]'"):
        load_digits()
