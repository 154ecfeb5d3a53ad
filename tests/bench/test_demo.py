from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.demo import Judge, calibration_calls
from bench.photos import load_photos
from edge_agent.result import Result, Where


def answer(scores: np.ndarray[Any, Any], codec: str) -> Result:
    return Result(scores, Where.SPLIT, 18, "blocks.3.project", codec, 1, 1.0, {"device": 1.0}, {})


@pytest.mark.slow
def test_the_judge_tells_right_from_wrong() -> None:
    photo = load_photos()[0]
    judge = Judge([photo])
    expected = judge._expected[photo.name]
    assert judge.label(expected) == "military uniform"
    assert judge.compare(photo, answer(expected, "float32+zstd")) == (True, 0.0)

    # As large as a lossy codec's error may well be, and far too large where every bit is kept.
    shifted = expected + 0.01 * np.abs(expected).max()
    right, error = judge.compare(photo, answer(shifted, "uint8"))
    assert right
    assert error == pytest.approx(0.01, rel=1e-3)
    assert not judge.compare(photo, answer(shifted, "float32+lz4"))[0]
    assert not judge.compare(photo, answer(shifted, "raw+zstd"))[0]
    assert not judge.compare(photo, answer(shifted, "float32+zstd, 2x raw+lz4"))[0]
    assert judge.compare(photo, answer(shifted, "float32+zstd, 2x uint8"))[0]
    assert not judge.compare(photo, answer(shifted, ""))[0], "the device alone loses nothing either"

    assert not judge.compare(photo, answer(-expected, "uint8"))[0]
    assert judge.compare(photo, answer(expected[:, :999], "uint8")) == (False, float("inf"))


def test_the_agent_is_calibrated_on_other_images_than_it_is_sent() -> None:
    sent = {photo.image.tobytes() for photo in load_photos()}
    calls = calibration_calls()
    assert len(calls) == len(sent)
    for (image,) in calls:
        assert (image.shape, image.dtype) == ((1, 3, 224, 224), np.uint8)
        assert image.tobytes() not in sent
