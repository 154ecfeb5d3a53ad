from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest

from bench.demo import Judge, main
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
    assert not judge.compare(photo, answer(shifted, "float32"))[0]
    assert not judge.compare(photo, answer(shifted, ""))[0], "the device alone loses nothing either"

    assert not judge.compare(photo, answer(-expected, "uint8"))[0]
    assert judge.compare(photo, answer(expected[:, :999], "uint8")) == (False, float("inf"))


def test_a_port_in_use_is_said_before_anything_is_started(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 8000))
        taken.listen()
        assert main(["--quick"]) == 3
    shown = capfd.readouterr().out
    assert "port 8000" in shown
    assert "in use" in shown
    assert "Traceback" not in shown
