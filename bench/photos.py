"""Real inputs that are already at hand: the photographs that matplotlib and scikit-learn ship.

Three photographs in eleven fixed crops give a demo and a bench inputs of differing difficulty; the
handwritten digits are scikit-learn's.  All of it comes with the extra ``demo``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import ConfigError

__all__ = ["Photo", "load_digits", "load_photos"]


@dataclass(frozen=True, slots=True)
class Photo:
    """A real image as an application would hold it: uint8, 1 x channels x height x width."""

    name: str
    image: npt.NDArray[np.uint8]
    source: str


@dataclass(frozen=True, slots=True)
class _Crop:
    """A square of ``side`` times the short side; ``left`` and ``top`` are shares of the room that is left."""

    name: str
    side: float = 1.0
    left: float = 0.5
    top: float = 0.5


_CROPS = {
    "grace_hopper.jpg": (_Crop(""), _Crop("portrait", 0.8, 0.5, 0.2), _Crop("uniform", 0.9, 0.5, 1.0)),
    "china.jpg": (_Crop(""), _Crop("left", left=0.0), _Crop("right", left=1.0), _Crop("near", 0.6, 0.4, 0.6)),
    "flower.jpg": (_Crop(""), _Crop("left", left=0.0), _Crop("right", left=1.0), _Crop("near", 0.6)),
}


def load_photos(size: int = 224) -> list[Photo]:
    """Every crop of every photograph, resized to ``size`` x ``size`` RGB, always in the same order.

    The first crop of a photograph is its whole short side about the centre, as classifiers are fed.
    Raises ConfigError when the extra is not installed.
    """
    try:
        import matplotlib.cbook
        import sklearn.datasets
        from PIL import Image
    except ImportError as error:
        raise _not_installed(error) from error

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        pictures = {"grace_hopper.jpg": (Image.open(file).convert("RGB"), "matplotlib")}
    for name in ("china.jpg", "flower.jpg"):
        pixels = sklearn.datasets.load_sample_image(name)
        pictures[name] = (Image.fromarray(pixels), "scikit-learn")

    photos = []
    for file_name, crops in _CROPS.items():
        picture, package = pictures[file_name]
        for crop in crops:
            side = round(crop.side * min(picture.size))
            left = round(crop.left * (picture.width - side))
            top = round(crop.top * (picture.height - side))
            square = picture.resize(
                (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
            )
            planes = np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)[np.newaxis])
            name = " ".join(filter(None, (file_name, crop.name)))
            photos.append(Photo(name, planes, f"{package}'s {file_name}"))
    return photos


def load_digits(count: int = 10) -> list[Photo]:
    """The first ``count`` handwritten digits of scikit-learn, white on black, 1 x 1 x 28 x 28.

    They are 8 x 8 originals, enlarged to 20 x 20 with a margin of 4 as in MNIST.  Raises ConfigError
    when the extra is not installed.
    """
    try:
        import sklearn.datasets
        from PIL import Image
    except ImportError as error:
        raise _not_installed(error) from error

    digits = sklearn.datasets.load_digits()
    photos = []
    for index, (pixels, label) in enumerate(zip(digits.images[:count], digits.target, strict=False)):
        grey = np.round(pixels * (255 / 16)).astype(np.uint8)
        enlarged = np.asarray(Image.fromarray(grey).resize((20, 20), Image.Resampling.BICUBIC))
        image = np.pad(enlarged, 4)[np.newaxis, np.newaxis]
        photos.append(Photo(f"digit {label}", image, f"scikit-learn's digits, {index}"))
    return photos


def _not_installed(error: ImportError) -> ConfigError:
    return ConfigError(f"the photographs need {error.name}; pip install 'suture[demo]'")
